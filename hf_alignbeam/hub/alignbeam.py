"""The entry of a Hub folder with the strategy alignbeam: its `generate`, decoded by `AlignBeam`.

Knows every argument that this `generate` accepts beside the usual ones.
"""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from hf_alignbeam.anchor.at_once import read_at_once
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.hub.judge_loading import JUDGE_ARGUMENTS, judge_from_arguments
from hf_alignbeam.hub.model_loading import cache_key, get_or_build, load_anchor, tokenizer_for
from hf_alignbeam.hub.shared_arguments import call_class_generate, preset_settings, split_settings
from hf_alignbeam.presets.published import PAPER

read_at_once()  # in a folder of the Hub too, where the packages' own `__init__` files are not

#: Arguments, beside `anchor` and `judge`, that say which models are loaded and how the judge's output is read.
MODEL_ARGUMENTS = ("anchor_revision", "anchor_tokenizer", *JUDGE_ARGUMENTS)
#: Settings of `AlignBeam` that belong to one call: the strategy is built without them.
PER_CALL_SETTINGS = ("conversations", "streamer")


@torch.no_grad()
def alignbeam(*args: Any, model: PreTrainedModel, anchor: Any, judge: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
    """`generate` with the `AlignBeam` strategy.

    Args:
        model: The target.
        anchor: The safe model: a Hub id, a folder, a loaded model (with `anchor_tokenizer`), or `"base"`.
        judge: A causal model or a sequence classifier, by Hub id, by folder or loaded (with `judge_tokenizer`); or any
            callable judge.
        tokenizer: The target's tokenizer; by default the one in the model's own repository or folder.
        args, kwargs: The arguments of `generate`, `streamer` included; the settings of `AlignBeam`; `preset="paper"`;
            `anchor_revision`; and what is said of the judge, as in `JudgeSettings`: `judge_profile`, `judge_rubric`,
            `judge_template`, `judge_labels`, `judge_threshold`, `judge_revision`.
    """
    tokenizer = tokenizer_for(model, tokenizer)
    settings, rest = split_settings(kwargs, AlignBeam)
    settings = {**preset_settings(rest.pop("preset", None), {"paper": PAPER}), **settings}
    settings |= {name: rest.pop(name) for name in MODEL_ARGUMENTS if name in rest}
    per_call = {name: settings.pop(name, None) for name in PER_CALL_SETTINGS}
    strategy = build_strategy(model, anchor, judge, tokenizer, settings).for_call(**per_call)
    return call_class_generate(model, args, _with_stop_strings({**rest, "custom_generate": strategy}), tokenizer)


def _with_stop_strings(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with the stop strings of a generation config beside it: there, `generate` misses the tokenizer."""
    config = kwargs.get("generation_config")
    if config is None or not config.stop_strings:
        return dict(kwargs)
    stop_strings, config = kwargs.get("stop_strings") or config.stop_strings, copy.copy(config)
    config.stop_strings = None
    return {**kwargs, "stop_strings": stop_strings, "generation_config": config}


def build_strategy(model: PreTrainedModel, anchor: Any, judge: Any, tokenizer: Any, settings: Mapping[str, Any]) -> AlignBeam:
    """The strategy for these models and settings: built once, then cached.

    Args:
        model: The target.
        anchor: As in `alignbeam`.
        judge: As in `alignbeam`.
        tokenizer: The target's tokenizer.
        settings: The settings of `AlignBeam`, and any of `MODEL_ARGUMENTS`.
    """
    model_arguments = {name: settings.get(name) for name in MODEL_ARGUMENTS}
    settings = {name: value for name, value in settings.items() if name not in MODEL_ARGUMENTS}
    AlignBeam.check_settings(**settings)
    revision, anchor_tokenizer = model_arguments["anchor_revision"], model_arguments["anchor_tokenizer"]
    loaded_anchor = load_anchor(anchor, revision, model, tokenizer, anchor_tokenizer)
    loaded_judge = judge_from_arguments(judge, model_arguments, model)

    def build() -> AlignBeam:
        return AlignBeam(*loaded_anchor, tokenizer, loaded_judge, model=model if anchor == "base" else None, **settings)

    key = ("alignbeam", *map(id, loaded_anchor), id(loaded_judge), id(tokenizer), *cache_key(settings))
    return cast(AlignBeam, get_or_build(model, key, build))
