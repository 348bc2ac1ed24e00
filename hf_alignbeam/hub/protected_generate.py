"""The `generate` of a model that brings its own protection: settled when it is loaded, and by no call."""

import copy
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
)

from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.hub.alignbeam import alignbeam, build_strategy
from hf_alignbeam.hub.arguments import (
    LOADED,
    NAMING,
    OPEN_SETTINGS,
    setting_names,
)
from hf_alignbeam.hub.model_loading import tokenizer_of

#: Where the generation config of a protected model names its anchor, its judge and their settings.
KEY = "alignbeam"


class Guarded:
    """`generate` of a model that brings its own protection, settled once and for all when this is made.

    Args:
        model: The target; its generation config names anchor, judge and their settings under `KEY`.
        tokenizer: The target's; by default the one that lies beside it.

    Raises:
        ValueError: It names none, or something that there is not.
        OSError: They cannot be loaded.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any = None):
        self.model = model
        own = _protection_of(model)
        known = {"anchor", "judge", *NAMING, *setting_names(AlignBeam)} - {*OPEN_SETTINGS, *LOADED}
        if unknown := sorted(set(own) - known):
            raise ValueError(f"generation_config.json must hold settings of AlignBeam under {KEY!r}, got {', '.join(unknown)}.")
        self._tokenizer = tokenizer_of(model, tokenizer)
        self._named = own.pop("anchor"), own.pop("judge")
        self._settings = own
        build_strategy(model, *self._named, self._tokenizer, own)  # what cannot be made is to be told now

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `generate`.

        Raises:
            ValueError: The call would change what passes, or what is judged.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        fixed = {"custom_generate", "model", "anchor", "judge", "preset", *NAMING, *setting_names(AlignBeam)} - {*OPEN_SETTINGS}
        if self._tokenizer.chat_template is not None and "inputs_embeds" not in kwargs:
            fixed.add("conversations")  # the prompt says itself what it asks
        for name in sorted(fixed & set(kwargs)):
            raise ValueError(
                f"`{name}` is settled by the model's own protection and must be left out, got {kwargs[name]!r}. It stands under "
                f"{KEY!r} in generation_config.json."
            )
        kwargs.pop("tokenizer", None)  # pipelines and servers hand one on: it is the model's own that counts
        anchor, judge = self._named
        settled = {"anchor": anchor, "judge": judge, "tokenizer": self._tokenizer, **self._settings}
        return alignbeam(*args, model=self.model, **settled, **kwargs)


def protected(*args: Any, model: PreTrainedModel, **kwargs: Any) -> Any:
    """`generate` of a model whose generation config names its own anchor and judge.

    Raises:
        ValueError: It names none, or the call would change what passes.
    """
    return Guarded(model)(*args, **kwargs)


def _protection_of(model: PreTrainedModel) -> dict[str, Any]:
    own = getattr(model.generation_config, KEY, None)
    if not isinstance(own, dict) or not {"anchor", "judge"} <= own.keys():
        raise ValueError(f"generation_config.json must name anchor and judge under {KEY!r}, got {own!r}.")
    return copy.deepcopy(own)
