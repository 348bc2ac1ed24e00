"""The arguments that several Hub entries share: which are settings, which are passed on to `generate`, and the call to it.

Knows the arguments of `generate` and of the code that loads a Hub folder. Knows no strategy.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedModel

#: Arguments that `generate` needs to load a Hub folder and passes on to the folder's own function.
LOADER_ARGUMENTS = frozenset(
    ["revision", "code_revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "trust_remote_code"]
)


def setting_names(cls: type) -> set[str]:
    """The parameters of a guard's or a strategy's class that are settings, not models or tokenizers."""
    return set(inspect.signature(cls).parameters) - {"anchor", "anchor_tokenizer", "tokenizer", "judge", "accept", "model"}


def split_settings(kwargs: Mapping[str, Any], cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into the settings of a class and the rest; the loader's arguments are dropped.

    None is a value: a setting that is None is given, as it is to the class itself.
    """
    names = setting_names(cls)
    settings = {name: value for name, value in kwargs.items() if name in names}
    rest = {name: value for name, value in kwargs.items() if name not in names and name not in LOADER_ARGUMENTS}
    return settings, rest


def preset_settings(name: str | None, presets: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings of a preset; none without a name.

    Raises:
        ValueError: There is no preset of that name.
    """
    if name is not None and name not in presets:
        raise ValueError(f"`preset` must be {', '.join(map(repr, presets))} or left out, got {name!r}.")
    return dict(presets[name]) if name else {}


def call_class_generate(model: PreTrainedModel, args: Sequence[Any], kwargs: dict[str, Any], tokenizer: Any) -> Any:
    """Call the `generate` of the model's class, with the tokenizer where stop strings need it.

    Raises:
        ValueError: The call asks for continuous batching, which ignores guards.
    """
    if kwargs.get("cache_implementation") == "paged":
        raise ValueError('`cache_implementation` must not be "paged": continuous batching ignores guards. Leave it out.')
    kwargs = kwargs if "custom_generate" in kwargs else {**kwargs, "tokenizer": tokenizer}  # a strategy has its own
    return cast(Any, type(model)).generate(model, *args, **kwargs)
