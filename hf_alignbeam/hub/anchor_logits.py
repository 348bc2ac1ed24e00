"""The entry of a Hub folder with the strategy anchor-logits: its `generate`, steered by an `AnchorLogitsProcessor`.

Knows every argument that this `generate` accepts beside the usual ones.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from hf_alignbeam.hub.model_loading import cache_key, get_or_build, load_anchor, tokenizer_for
from hf_alignbeam.hub.shared_arguments import call_class_generate, preset_settings, split_settings
from hf_alignbeam.presets.processor import PROCESSOR
from hf_alignbeam.steering.processor import AnchorLogitsProcessor


@torch.no_grad()
def anchor_logits(*args: Any, model: PreTrainedModel, anchor: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
    """`generate` with an `AnchorLogitsProcessor`.

    Args:
        model: The target.
        anchor: The safe model: a Hub id, a folder, a loaded model (with `anchor_tokenizer`), or `"base"`.
        tokenizer: The target's tokenizer; by default the one in the model's own repository or folder.
        args, kwargs: The arguments of `generate`; the settings of `AnchorLogitsProcessor`; `preset`, a key of `PROCESSOR`;
            `anchor_revision`.
    """
    tokenizer = tokenizer_for(model, tokenizer)
    settings, rest = split_settings(kwargs, AnchorLogitsProcessor)
    settings = {**preset_settings(rest.pop("preset", None), PROCESSOR), **settings}
    anchor_revision, anchor_tokenizer = rest.pop("anchor_revision", None), rest.pop("anchor_tokenizer", None)
    conversations = settings.pop("conversations", None)
    loaded_anchor = load_anchor(anchor, anchor_revision, model, tokenizer, anchor_tokenizer)

    def build() -> AnchorLogitsProcessor:
        return AnchorLogitsProcessor(*loaded_anchor, tokenizer, model=model if anchor == "base" else None, **settings)

    guard = get_or_build(model, ("anchor_logits", *map(id, loaded_anchor), id(tokenizer), *cache_key(settings)), build)
    rest["logits_processor"] = [*(rest.get("logits_processor") or []), guard.with_conversations(conversations)]
    return call_class_generate(model, args, rest, tokenizer)
