"""Modes of `generate` beside greedy search, sampling and beams: a guard that does not know one refuses it by its name.

Knows the names of transformers' settings. Knows no guard.
"""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

#: Settings of a generation config that select another mode than greedy search or sampling, where they are set.
MODES = (
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "speculation_type",
    "use_mtp",
    "penalty_alpha",
    "dola_layers",
    "constraints",
    "force_words_ids",
)
#: The names under which models keep their caches; since transformers 5.24 `cache` is that of all its own but the last three.
CACHES = ("cache", "past_key_values", "cache_params", "state", "mems", "past_buckets_states")
#: Inputs that hold a value for each token of a row: (..., rows, length).
BY_TOKEN = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")
#: Arguments that `generate` takes itself and does not pass on to a strategy (transformers 5.23).
MODELS = ("assistant_model", "assistant_tokenizer")


def encoder_settings(config: GenerationConfig) -> dict[str, bool]:
    """Whether each setting is in use that reads the prompt as an encoder's input: its ids, by the numbers of the batch's rows."""
    penalty, size = config.encoder_repetition_penalty, config.encoder_no_repeat_ngram_size
    return {"encoder_repetition_penalty": penalty not in (None, 1.0), "encoder_no_repeat_ngram_size": bool(size)}


def refuse_modes(config: GenerationConfig, given: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for modes of `generate` that are not a plain continuation of every row.

    Args:
        config: The configuration of the call.
        given: The other arguments of the call, by name.
        name: What refuses them.
    """
    for mode in MODES:
        if value := getattr(config, mode, None):
            raise ValueError(f"`{mode}` must be left out with {name}, which does not know this mode, got {value!r}.")
    for mode in MODELS:
        if (value := given.get(mode)) is not None:
            raise ValueError(f"`{mode}` must be left out with {name}, which would not use it, got a {type(value).__name__}.")
