"""The class that loads a protected model: it returns the target with its guard in place, or raises.

This file is the remote code at the top of a protected repository. The target lies in a sub-folder, and its configuration has a
name that no other class looks for: without `trust_remote_code`, without the guard's code or with another class, nothing loads.
"""

import os
import sys
from functools import partial
from typing import Any, NoReturn

from hf_alignbeam.versions import check_versions

check_versions()  # before imports that fail on an old release

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

#: The sub-folder of the target, and the name of its configuration there, under which no other class finds it.
TARGET_FOLDER, TARGET_CONFIG = "target", "protected_config.json"
#: Arguments that select a repository's revision and say how it is downloaded.
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class ProtectedConfig(PreTrainedConfig):
    """The configuration at the top of a protected repository, which says only what class loads it."""

    model_type = "alignbeam_protected"


class ProtectedModelForCausalLM(PreTrainedModel):
    """Loads the target of a protected repository and replaces its `generate` with the guarded one."""

    config_class = ProtectedConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load the target, an object of its own class, with the guard in place.

        Raises:
            OSError: The repository lacks the target or the guard's code.
            ValueError: `trust_remote_code` is not True, `subfolder` is given, or the guard's settings are wrong.
        """
        if kwargs.get("trust_remote_code") is not True:
            raise ValueError(
                f"`trust_remote_code` must be True for a protected model, got {kwargs.get('trust_remote_code')!r}: its guard is "
                "code. Read the code, then pin it with `revision`."
            )
        if kwargs.get("subfolder"):
            raise ValueError(
                "`subfolder` must be left out for a protected model, which takes up its whole repository, got "
                f"{kwargs['subfolder']!r}."
            )
        replaced = ("config", "adapter_kwargs", "_from_auto", "subfolder")
        kwargs = {name: value for name, value in kwargs.items() if name not in replaced}
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        repo = str(pretrained_model_name_or_path)
        is_local = os.path.isdir(repo)
        subfolder = {} if is_local else {"subfolder": TARGET_FOLDER}
        target = os.path.join(repo, TARGET_FOLDER) if is_local else repo
        config = AutoConfig.from_pretrained(target, _configuration_file=TARGET_CONFIG, **hub, **subfolder)
        kwargs["trust_remote_code"] = False  # trust covers the guard's code only
        model: Any = AutoModelForCausalLM.from_pretrained(target, *model_args, config=config, **subfolder, **kwargs)
        model.generation_config = GenerationConfig.from_pretrained(repo, **hub)
        model.config.name_or_path = repo
        tokenizer = AutoTokenizer.from_pretrained(repo, trust_remote_code=False, **hub)  # of the same commit
        entry = model.load_custom_generate(repo, trust_remote_code=True, **hub)
        model.generate = sys.modules[entry.__module__].ProtectedGenerate(model, tokenizer)
        for name in ("generate_batch", "init_continuous_batching", "save_pretrained", "push_to_hub"):
            setattr(model, name, partial(_refuse, name))
        return model


def _refuse(name: str, *args: Any, **kwargs: Any) -> NoReturn:
    """Stands in for a method that would bypass the guard."""
    raise ValueError(f"`{name}` must not be used on a protected model: it would bypass the guard. Copy the repository instead.")
