"""The `generate` of a Hub folder that holds an `AnchorLogitsProcessor`."""

from typing import Any

import torch
from transformers import (
    PreTrainedModel,
)

from hf_alignbeam.hub.arguments import (
    generate_with_class,
    preset_settings,
    split_settings,
)
from hf_alignbeam.hub.model_loading import build_once, load_anchor, settings_key, tokenizer_of
from hf_alignbeam.presets.published import PROCESSOR
from hf_alignbeam.steering.processor import AnchorLogitsProcessor


@torch.no_grad()
def anchor_logits(*args: Any, model: PreTrainedModel, anchor: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
    """`generate` with an `AnchorLogitsProcessor`.

    Args:
        model: The target.
        anchor: The safe model: a Hub id, a folder, a loaded model (with `anchor_tokenizer`), or `"base"`.
        tokenizer: The target's; by default the one that lies beside it.
        args, kwargs: What `generate` takes; what `AnchorLogitsProcessor` takes, by name; `preset`, one of `PROCESSOR`;
            `anchor_revision`.
    """
    tokenizer = tokenizer_of(model, tokenizer)
    settings, rest = split_settings(kwargs, AnchorLogitsProcessor)
    settings = {**preset_settings(rest.pop("preset", None), PROCESSOR), **settings}
    anchor_revision, anchor_tokenizer = rest.pop("anchor_revision", None), rest.pop("anchor_tokenizer", None)
    conversations = settings.pop("conversations", None)
    loaded = load_anchor(anchor, anchor_revision, model, tokenizer, anchor_tokenizer)

    def build() -> AnchorLogitsProcessor:
        return AnchorLogitsProcessor(*loaded, tokenizer, model=model if anchor == "base" else None, **settings)

    guard = build_once(model, ("anchor_logits", *map(id, loaded), id(tokenizer), *settings_key(settings)), build)
    if conversations is not None:
        guard = guard.with_conversations(conversations)
    rest["logits_processor"] = [*(rest.get("logits_processor") or []), guard]
    return generate_with_class(model, args, rest, tokenizer)
