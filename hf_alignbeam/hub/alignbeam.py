"""What a Hub folder's `generate` does: plain arguments in, a guard or a strategy out, one function a strategy.

Knows `generate`'s arguments, and which of them are whose. How models are loaded and kept is `loading.py`'s business.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import (
    PreTrainedModel,
)

from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.hub.arguments import (
    NAMING,
    OPEN_SETTINGS,
    generate_with_class,
    preset_settings,
    split_settings,
)
from hf_alignbeam.hub.judge_loading import load_named_judge
from hf_alignbeam.hub.model_loading import build_once, load_anchor, settings_key, tokenizer_of
from hf_alignbeam.presets.published import PAPER


@torch.no_grad()
def alignbeam(*args: Any, model: PreTrainedModel, anchor: Any, judge: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
    """`generate` with the `AlignBeam` strategy.

    Args:
        model: The target.
        anchor: The safe model: a Hub id, a folder, a loaded model (with `anchor_tokenizer`), or `"base"`.
        judge: A Hub id or a folder of a causal model or a sequence classifier, a loaded one (with `judge_tokenizer`), or any
            callable judge.
        tokenizer: The target's; by default the one that lies beside it.
        args, kwargs: What `generate` takes, its streamer too; what `AlignBeam` takes, by name; `preset="paper"`;
            `anchor_revision`, `judge_revision`, `judge_labels`, `judge_template`.
    """
    tokenizer = tokenizer_of(model, tokenizer)
    settings, rest = split_settings(kwargs, AlignBeam)
    settings = {**preset_settings(rest.pop("preset", None), {"paper": PAPER}), **settings}
    settings |= {name: rest.pop(name) for name in NAMING if name in rest}
    open_settings = {name: settings.pop(name, None) for name in OPEN_SETTINGS}
    strategy = build_strategy(model, anchor, judge, tokenizer, settings).for_call(**open_settings)
    return generate_with_class(model, args, {**rest, "custom_generate": strategy}, tokenizer)


def build_strategy(model: PreTrainedModel, anchor: Any, judge: Any, tokenizer: Any, settings: Mapping[str, Any]) -> AlignBeam:
    """A strategy of plain arguments, built once."""
    named = {name: settings.get(name) for name in NAMING}
    settings = {name: value for name, value in settings.items() if name not in NAMING}
    loaded = load_anchor(anchor, named["anchor_revision"], model, tokenizer, named["anchor_tokenizer"])
    judging = load_named_judge(judge, named, model)

    def build() -> AlignBeam:
        return AlignBeam(*loaded, tokenizer, judging, model=model if anchor == "base" else None, **settings)

    key = ("alignbeam", *map(id, loaded), id(judging), id(tokenizer), *settings_key(settings))
    return cast(AlignBeam, build_once(model, key, build))
