"""The class that loads a protected model: it returns the target with its guard in place, or raises.

This file is the remote code at the top of a protected repository. The target lies in a sub-folder. Its configuration and its
weights have names that no other class looks for: without `trust_remote_code`, without the guard's code or with another class,
nothing loads.
"""

import copy
import os
import sys
from functools import partial
from typing import Any, NoReturn

from hf_alignbeam.versions import check_versions

check_versions()  # before imports that fail on an old release

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

#: The sub-folder of the target, and the name of its configuration there, under which no other class finds it.
TARGET_FOLDER, TARGET_CONFIG = "target", "protected_config.json"
#: The variant of its weights, which no other class looks for: it needs no `config.json`, and its default sizes could fit (5.24).
TARGET_VARIANT = "protected"
#: What a protected repository's own configuration says.
OWN_VALUES = ("model_type", "vocab_size", "architectures", "auto_map", "transformers_version", "_name_or_path", "_commit_hash")
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

        Arguments are those that the target's class takes. `generation_config` changes nothing of the guard.

        Raises:
            OSError: The repository lacks the target or the guard's code.
            ValueError: `trust_remote_code` is not True, `subfolder` or `variant` is given, or the guard's settings are wrong.
        """
        if kwargs.get("trust_remote_code") is not True:
            raise ValueError(
                f"`trust_remote_code` must be True for a protected model, got {kwargs.get('trust_remote_code')!r}: its guard is "
                "code. Read the code, then pin it with `revision`."
            )
        for name in ("subfolder", "variant"):
            if kwargs.get(name):
                raise ValueError(
                    f"`{name}` must be left out for a protected model, which takes up its whole repository, got {kwargs[name]!r}."
                )
        overrides = _changed(kwargs.pop("config", None))
        kwargs = {name: value for name, value in kwargs.items() if name not in ("adapter_kwargs", "_from_auto", "subfolder")}
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        repo = str(pretrained_model_name_or_path)
        is_local = os.path.isdir(repo)
        kwargs |= {} if is_local else {"subfolder": TARGET_FOLDER}
        target = os.path.join(repo, TARGET_FOLDER) if is_local else repo
        generation = GenerationConfig.from_pretrained(repo, **hub)
        if (given := kwargs.get("generation_config")) is not None:
            protection, generation = getattr(generation, "alignbeam", None), copy.deepcopy(given)
            generation.alignbeam = protection  # what the caller's may not change
        kwargs |= {"_configuration_file": TARGET_CONFIG, "variant": TARGET_VARIANT, "generation_config": generation}
        kwargs["trust_remote_code"] = False  # trust covers the guard's code only
        loaded: Any = AutoModelForCausalLM.from_pretrained(target, *model_args, **{**overrides, **kwargs})
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        model.name_or_path = model.config.name_or_path = repo
        tokenizer = AutoTokenizer.from_pretrained(repo, trust_remote_code=False, **hub)  # of the same commit
        entry = model.load_custom_generate(repo, trust_remote_code=True, **hub)
        model.generate = sys.modules[entry.__module__].ProtectedGenerate(model, tokenizer)
        for name in ("generate_batch", "init_continuous_batching", "save_pretrained", "push_to_hub"):
            setattr(model, name, partial(_refuse, name))
        return loaded


def _changed(config: PreTrainedConfig | None) -> dict[str, Any]:
    """What a caller has set in a configuration, by the names of arguments: auto classes put theirs there."""
    unchanged = vars(ProtectedConfig())
    changed = {name: value for name, value in vars(config or ProtectedConfig()).items() if value != unchanged.get(name)}
    return {name.removeprefix("_").removesuffix("_internal"): value for name, value in changed.items() if name not in OWN_VALUES}


def _refuse(name: str, *args: Any, **kwargs: Any) -> NoReturn:
    """Stands in for a method that would bypass the guard."""
    raise ValueError(f"`{name}` must not be used on a protected model: it would bypass the guard. Copy the repository instead.")
