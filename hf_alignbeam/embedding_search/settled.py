"""How answers are generated in one call: a user's arguments of `generate`, settled so that a search can repeat them.

Knows `generate`'s configuration. Knows no prompt and no embeddings.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

#: How many tokens an answer has where nobody says it, as in transformers 5.23.
DEFAULT_LENGTH = 20
#: What `generate` may be asked for beside sequences, which a searched answer does not have.
BY_STEP = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@dataclass(frozen=True)
class ResolvedGeneration:
    """How answers are generated.

    Attributes:
        config: As the user has it, with the number of new tokens and the ids that end and pad an answer filled in.
        others: What else `generate` is given.
        eos_ids: Every id that ends an answer.
        told_pad_id: The id by which `generate` itself would tell padding from a prompt; None where there is none.
    """

    config: GenerationConfig
    others: dict[str, Any]
    eos_ids: tuple[int, ...]
    told_pad_id: int | None

    @property
    def n_new(self) -> int:
        """How many tokens an answer may have."""
        return int(self.config.max_new_tokens or 0)

    @property
    def pad_id(self) -> int:
        """What answers are filled up with."""
        return int(self.config.pad_token_id or 0)


def resolve_generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generate_kwargs: Mapping[str, Any], n_prompt: int
) -> ResolvedGeneration:
    """Settle one call's arguments.

    Args:
        model: The target.
        tokenizer: Its tokenizer, which stop strings need.
        generate_kwargs: What the user gave `generate`.
        n_prompt: The length of the padded prompts.

    Raises:
        ValueError: Something was asked for that a searched answer does not have.
    """
    kwargs = dict(generate_kwargs)
    own: Any = model.generation_config
    config = copy.deepcopy(kwargs.pop("generation_config", None) or GenerationConfig())
    others = config.update(**kwargs)
    config.update(**own.to_dict(), defaults_only=True, allow_custom_entries=True)  # as `generate` does, transformers 5.23
    for name in BY_STEP:
        if getattr(config, name, None):
            raise ValueError(f"`{name}` must be left out: an answer that was searched for has none. Ask for sequences alone.")
    if (config.num_return_sequences or 1) > 1:
        raise ValueError(
            f"`num_return_sequences` must be 1, got {config.num_return_sequences}. Repeat the prompt to get several answers."
        )
    if "past_key_values" in others:
        raise ValueError("`past_key_values` must be left out: every answer of a search needs a cache of its own.")
    ends = config.eos_token_id
    eos_ids = tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),)
    told = config.pad_token_id if config.pad_token_id not in eos_ids else None
    if config.pad_token_id is None:
        config.pad_token_id = eos_ids[0] if eos_ids else 0
    if config.max_new_tokens is None:
        config.max_new_tokens = DEFAULT_LENGTH if config.max_length is None else max(1, config.max_length - n_prompt)
    config.max_length = None
    if config.stop_strings:
        others["tokenizer"] = tokenizer
    return ResolvedGeneration(config, others, eos_ids, told)
