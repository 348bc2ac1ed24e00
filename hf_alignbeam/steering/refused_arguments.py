"""Arguments of `generate` that a decoding strategy cannot honor: each is refused by its name.

Knows the stack frame of a call of `generate`. Knows nothing of how a strategy decodes.
"""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from hf_alignbeam.inference.adapters import adapter_layers
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.utils.generation_modes import BY_TOKEN, CACHES, encoder_settings, refuse_modes

#: The model's inputs that a strategy reads, or that say nothing of their own.
READ_INPUTS = frozenset((*BY_TOKEN, *CACHES, "input_ids", "inputs_embeds", "logits_to_keep"))
#: Settings for which `generate` needs the tokenizer, which it takes away from a strategy's calls (transformers 5.23).
NEED_TOKENIZER = {
    "stop_strings": "Pass `stop_strings` to `generate` itself, where the strategy reads it",
    "token_healing": "Leave it out, or heal the prompt first with `model.heal_tokens(input_ids, tokenizer)`",
}


#: How many callers are searched for the call of `generate`.
N_FRAMES = 12


def check_strategy_call(
    model: PreTrainedModel, logits_processor: LogitsProcessorList, config: GenerationConfig, model_kwargs: Mapping[str, Any]
) -> None:
    """Raise ValueError, by the argument's name, for arguments of `generate` that AlignBeam cannot honor."""
    call = calling_generate()
    hooks = [hook for layer in adapter_layers(model) for hook in layer._forward_pre_hooks.values()]
    if any("adapter_names" in getattr(hook, "keywords", ()) for hook in hooks):  # how peft 0.21 passes them on
        raise ValueError(
            "`adapter_names` must be left out with AlignBeam, because candidates would be written by the adapters of other rows. "
            "Call `generate` once for each adapter."
        )
    if call.get("streamer") is not None:  # it is not passed on (transformers 5.23), so its reader would wait for ever
        raise ValueError("`streamer` must be given to AlignBeam: `generate` does not pass its own on, and would never end it.")
    if model.config.is_encoder_decoder:
        raise ValueError(f"The target must be a decoder, got the encoder-decoder {type(model).__name__}.")
    for name, value in model_kwargs.items():
        if name not in READ_INPUTS and isinstance(value, Tensor | Mapping):
            raise ValueError(
                f"`{name}` must be left out with AlignBeam, got a {type(value).__name__}: anchor and judge read text, and no "
                "images or sounds. Describe them in words."
            )
    refuse_modes(config, call, "AlignBeam")
    _refuse_settings(config)
    refused = {
        "watermarking_config": any(isinstance(each, SynthIDTextWatermarkLogitsProcessor) for each in logits_processor),
        "guidance_scale": any(isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor) for each in logits_processor),
        "prefix_allowed_tokens_fn": any(isinstance(each, PrefixConstrainedLogitsProcessor) for each in logits_processor),
    }
    _refuse_given(refused)
    if any(isinstance(each, AnchorLogitsProcessor) for each in logits_processor):
        raise ValueError("`logits_processor` must not hold an AnchorLogitsProcessor: AlignBeam steers its candidates itself.")


def check_generation_config(config: GenerationConfig) -> None:
    """Raise ValueError, by the setting's name, for the generation config of a model with which AlignBeam refuses every call."""
    refuse_modes(config, {}, "AlignBeam")
    _refuse_settings(config)
    _refuse_given({"guidance_scale": config.guidance_scale not in (None, 1), "token_healing": bool(config.token_healing)})


def _refuse_settings(config: GenerationConfig) -> None:
    refused = {
        "num_beams": (config.num_beams or 1) > 1,
        "num_beam_groups": (getattr(config, "num_beam_groups", None) or 1) > 1,
        "output_attentions": bool(config.output_attentions),
        "output_hidden_states": bool(config.output_hidden_states),
        "cache_implementation": "offload" in str(config.cache_implementation),
    }
    _refuse_given(refused | encoder_settings(config))


def _refuse_given(refused: Mapping[str, bool]) -> None:
    for name in (name for name, is_given in refused.items() if is_given):
        raise ValueError(f"`{name}` must be left out with AlignBeam, because it does not work for candidates, but it is set.")


def check_prompts_are_whole(input_ids: Tensor, config: GenerationConfig, model_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError where earlier turns are in the cache alone, in which neither anchor nor judge can read them."""
    mask = model_kwargs.get("attention_mask")
    n_attended = getattr(config, "_mask_length", 0) if mask is None else mask.shape[-1]
    if 0 < input_ids.shape[-1] < n_attended:
        raise ValueError(
            f"`input_ids` must hold the whole conversation with AlignBeam, got the last {input_ids.shape[-1]} of {n_attended} "
            "tokens, and the others in a cache. Pass all ids beside the cache, or `strategy.for_call(conversations)`."
        )


def check_tokenizer_settings() -> None:
    """Raise ValueError, by the setting's name, where the configuration of a call holds a setting that needs the tokenizer.

    `generate` would ask for a tokenizer although one is given. It looks a strategy's signature up before that.
    """
    call = calling_generate()
    owner = getattr(call.get("self"), "generation_config", None)
    for config, place in ((call.get("generation_config"), "`generation_config`"), (owner, "the model's own generation config")):
        for name, advice in NEED_TOKENIZER.items():
            if getattr(config, name, None):
                raise ValueError(
                    f"`{name}` must be left out of {place} with AlignBeam, got {getattr(config, name)!r}: `generate` passes no "
                    f"tokenizer on to a strategy. {advice}."
                )
    if call.get("kwargs", {}).get("token_healing"):
        raise ValueError(f"`token_healing` must be left out with AlignBeam, got True. {NEED_TOKENIZER['token_healing']}.")


def calling_generate() -> Mapping[str, Any]:
    """The arguments and variables of the call of `generate` with a strategy that is running; empty where there is none."""
    frame = sys._getframe(1)
    for _ in range(N_FRAMES):
        if frame.f_code.co_name == "generate" and "custom_generate" in frame.f_locals:
            return frame.f_locals
        if frame.f_back is None:
            break
        frame = frame.f_back
    return {}
