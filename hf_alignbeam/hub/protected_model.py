"""A protected model repository: loading it gives the target with its guard in place, or raises.

Stands at the top of such a repository as its remote code. The target lies in a folder of its own, its configuration under a name
that no class but this one asks for, so that without trust, without the guard's code, or through another class nothing is loaded.
"""

import os
import sys
from functools import partial
from typing import Any, NoReturn

from hf_alignbeam.versions import check_versions

check_versions()  # before the imports that fail on an old release

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

#: The folder that holds the target, and the name of its configuration there, by which no other class finds it.
TARGET, CONFIG = "target", "protected_config.json"
#: Arguments that say which copy of a repository is meant.
HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class ProtectedConfig(PreTrainedConfig):
    """Says that a repository holds a protected model, and nothing else."""

    model_type = "alignbeam_protected"


class ProtectedModelForCausalLM(PreTrainedModel):
    """Loads the target of a protected repository and puts the strategy in the place of its `generate`."""

    config_class = ProtectedConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """The target, of its own class, guarded.

        Raises:
            OSError: The repository lacks the target or the guard's code.
            ValueError: The guard cannot be made, or a part of the repository was asked for.
        """
        if kwargs.get("trust_remote_code") is not True:
            raise ValueError("`trust_remote_code` must be True for a protected model, whose guard is code. Read it, then pin it.")
        if kwargs.get("subfolder"):
            raise ValueError(
                f"`subfolder` must be left out: a protected model is all of its repository, got {kwargs['subfolder']!r}."
            )
        ours = ("config", "adapter_kwargs", "_from_auto", "subfolder")
        kwargs = {name: value for name, value in kwargs.items() if name not in ours}
        hub = {name: kwargs[name] for name in HUB if kwargs.get(name) is not None}
        place = str(pretrained_model_name_or_path)
        local = os.path.isdir(place)
        where = {} if local else {"subfolder": TARGET}
        target = os.path.join(place, TARGET) if local else place
        config = AutoConfig.from_pretrained(target, _configuration_file=CONFIG, **hub, **where)
        kwargs["trust_remote_code"] = False  # the guard's code is all that was trusted
        model: Any = AutoModelForCausalLM.from_pretrained(target, *model_args, config=config, **where, **kwargs)
        model.generation_config = GenerationConfig.from_pretrained(place, **hub)
        model.config.name_or_path = place
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **hub)  # of the same commit
        door = model.load_custom_generate(place, trust_remote_code=True, **hub)
        model.generate = sys.modules[door.__module__].Guarded(model, tokenizer)
        for name in ("generate_batch", "init_continuous_batching", "save_pretrained", "push_to_hub"):
            setattr(model, name, partial(_refuse, name))
        return model


def _refuse(name: str, *args: Any, **kwargs: Any) -> NoReturn:
    """What a protected model does not do, for it would leave the guard out."""
    raise ValueError(f"`{name}` must not be used on a protected model: it would leave its guard out. Copy the repository itself.")
