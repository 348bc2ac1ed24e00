"""The entry of a protected model: its `generate`, whose anchor, judge and settings are fixed when the model is loaded.

Knows which arguments a call may still give. `alignbeam` builds the strategy from the settings.
"""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.hub.alignbeam import MODEL_ARGUMENTS, PER_CALL_SETTINGS, alignbeam, build_strategy
from hf_alignbeam.hub.judge_loading import judge_settings, loaded_sha256
from hf_alignbeam.hub.model_loading import get_or_build, tokenizer_for
from hf_alignbeam.hub.shared_arguments import setting_names
from hf_alignbeam.utils.generation_modes import CACHES

#: The key of generation_config.json under which a protected model names its anchor, its judge and their settings.
PROTECTION_KEY = "alignbeam"
#: Model arguments whose values JSON cannot hold.
NOT_IN_JSON = ("anchor_tokenizer", "judge_tokenizer")
#: The hashes of an anchor and a judge in folders.
HASHES = ("anchor_sha256", "judge_sha256")


def check_protection(protection: Mapping[str, Any]) -> None:
    """Check a protection as far as it can be checked before anything is loaded.

    Raises:
        ValueError: A name is unknown, the anchor is `base`, the judge is behind a URL, or a setting is wrong.
    """
    known = {"anchor", "judge", *HASHES, *MODEL_ARGUMENTS, *setting_names(AlignBeam)} - {*PER_CALL_SETTINGS, *NOT_IN_JSON}
    if unknown := sorted(set(protection) - known):
        raise ValueError(
            f"generation_config.json must hold settings of AlignBeam under {PROTECTION_KEY!r}, got {', '.join(unknown)}."
        )
    if protection["anchor"] == "base":
        raise ValueError(
            "`anchor` of a protected model must be a Hub id or a folder, got 'base', which is the model under an adapter. Name a "
            "safe model."
        )
    if str(protection["judge"]).startswith(("http://", "https://")):
        raise ValueError(
            "`judge` of a protected model must be a Hub id or a folder, got a URL: the model loads its judge. Without such "
            "a copy, a call may pass a judge behind a URL as an object."
        )
    judge_settings(protection).resolved()
    AlignBeam.check_settings(**{name: value for name, value in protection.items() if name in setting_names(AlignBeam)})


class ProtectedGenerate:
    """The `generate` of a protected model: its protection is read and checked once, here.

    Args:
        model: The target; its generation config names the anchor, the judge and their settings under `PROTECTION_KEY`.
        tokenizer: The target's tokenizer; by default the one in the model's own repository or folder.

    Raises:
        ValueError: The generation config names no anchor or no judge, or holds an unknown or invalid setting.
        OSError: The anchor or the judge cannot be loaded.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any = None):
        self.model = model
        settings = _protection_of(model)
        check_protection(settings)
        self._tokenizer = tokenizer_for(model, tokenizer)
        for kind in ("anchor", "judge"):
            _check_folder(kind, settings[kind], settings.pop(f"{kind}_sha256", None))
        self._anchor, self._judge = settings.pop("anchor"), settings.pop("judge")
        self._settings = settings
        self._stop_strings = model.generation_config.stop_strings
        model.generation_config.stop_strings = None  # there, `generate` would miss a tokenizer
        build_strategy(model, self._anchor, self._judge, self._tokenizer, settings)  # a bad setting fails when loading

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `generate`.

        Raises:
            ValueError: The call gives an argument that is fixed.
        """
        settings = setting_names(AlignBeam) - {*PER_CALL_SETTINGS}  # of these, None is a value
        kwargs = {name: value for name, value in kwargs.items() if value is not None or name in settings}
        fixed = {"custom_generate", "model", "anchor", "judge", "preset", "conversations", *MODEL_ARGUMENTS, *settings}
        for name in sorted(fixed & set(kwargs)):
            raise ValueError(
                f"`{name}` is fixed by the protected model and must be left out, got {kwargs[name]!r}. Its value is under "
                f"{PROTECTION_KEY!r} in generation_config.json."
            )
        for name in ("inputs_embeds", *CACHES):
            given = kwargs.get(name)
            if given is not None and not _is_empty_cache(given):
                raise ValueError(
                    f"`{name}` must be left out for a protected model, got a {type(given).__name__}: the judge reads the "
                    "prompt in `input_ids`, and the target must read the same. Pass the ids of the whole prompt alone."
                )
        kwargs.pop("tokenizer", None)  # pipelines and servers pass one: the model's own is used
        if not getattr(kwargs.get("generation_config"), "stop_strings", None):
            kwargs.setdefault("stop_strings", self._stop_strings)
        protection = {"anchor": self._anchor, "judge": self._judge, "tokenizer": self._tokenizer, **self._settings}
        return alignbeam(*args, model=self.model, **protection, **kwargs)


def _is_empty_cache(given: Any) -> bool:
    """Whether an argument is a cache that holds no prompt."""
    return hasattr(given, "get_seq_length") and not given.get_seq_length()


def protected_generate(*args: Any, model: PreTrainedModel, **kwargs: Any) -> Any:
    """`generate` of a model whose generation config names its own anchor and judge; arguments as in `ProtectedGenerate.__call__`.

    Raises:
        ValueError: The generation config names no anchor or no judge, or the call gives an argument that is fixed.
    """
    return get_or_build(model, ("protected_generate",), lambda: ProtectedGenerate(model))(*args, **kwargs)


def _protection_of(model: PreTrainedModel) -> dict[str, Any]:
    protection = getattr(model.generation_config, PROTECTION_KEY, None)
    if not isinstance(protection, dict) or not {"anchor", "judge"} <= protection.keys():
        raise ValueError(f"generation_config.json must name anchor and judge under {PROTECTION_KEY!r}, got {protection!r}.")
    return copy.deepcopy(protection)


def _check_folder(kind: str, name: str, sha256: str | None) -> None:
    """Check that an anchor or a judge in a folder is the one that the model was protected with."""
    if not os.path.isdir(name):
        return
    if not os.path.isabs(name):
        raise ValueError(
            f"`{kind}` of a protected model must be a Hub id or the absolute path of a folder, got {name!r}, which is "
            f"{os.path.abspath(name)} here and could be something else elsewhere. Protect the model again, or write the path."
        )
    if sha256 is not None and loaded_sha256(Path(name)) != sha256:
        raise ValueError(
            f"`{kind}` of a protected model must not change, but the files of {name} are not those that it was protected with. "
            "Restore them, or protect the model again."
        )
