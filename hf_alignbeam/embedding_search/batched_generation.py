"""Answers to many prompts' embeddings, generated in batches under a token budget.

Knows `generate` with its configuration, padding and random streams. Knows no judge, and not which prompt a row is a probe of.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_alignbeam.embedding_search.embeddings import left_padded
from hf_alignbeam.utils.generation_modes import CACHES, encoder_settings, refuse_modes

#: The default number of new tokens of `generate`, transformers 5.23.
DEFAULT_LENGTH = 20
#: What `generate` can return besides sequences, but a search cannot.
PER_STEP_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
#: Settings that apply to sampled answers only.
SAMPLING = {
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "typical_p": None,
    "top_h": None,
    "epsilon_cutoff": None,
    "eta_cutoff": None,
}


@dataclass(frozen=True)
class ResolvedGeneration:
    """The arguments of one call of `generate`, resolved so that a search can repeat it.

    Attributes:
        config: The user's configuration, with the number of new tokens and the ids of end and padding filled in.
        kwargs: The arguments of `generate` that are not part of a configuration.
        eos_ids: All ids that end an answer.
        prompt_pad_id: The id that `generate` itself takes for padding in a prompt; None if it takes none.
    """

    config: GenerationConfig
    kwargs: dict[str, Any]
    eos_ids: tuple[int, ...]
    prompt_pad_id: int | None

    @property
    def n_new(self) -> int:
        """The most tokens that an answer may have."""
        return int(self.config.max_new_tokens or 0)

    @property
    def pad_id(self) -> int:
        """The id that pads answers."""
        return int(self.config.pad_token_id or 0)

    def up_to_end(self, ids: Sequence[int]) -> list[int]:
        """The ids of a generated answer, its end token included, without the padding after it."""
        n_ids = next((n for n, i in enumerate(ids, start=1) if i in self.eos_ids), None)
        if n_ids is None:
            n_ids = next((n for n in range(len(ids), 0, -1) if ids[n - 1] != self.pad_id), 0)
        return list(ids[:n_ids])


def resolve_generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generate_kwargs: Mapping[str, Any], n_prompt: int
) -> ResolvedGeneration:
    """Resolve the arguments of one call of `generate`.

    Args:
        model: The target.
        tokenizer: The target's tokenizer, which stop strings need.
        generate_kwargs: The user's arguments of `generate`.
        n_prompt: The length of the padded prompts.

    Raises:
        ValueError: An argument asks for something that a search cannot return.
    """
    kwargs = dict(generate_kwargs)
    model_config: Any = model.generation_config
    config = copy.deepcopy(kwargs.pop("generation_config", None) or GenerationConfig())
    other_kwargs = config.update(**kwargs)
    config.update(**model_config.to_dict(), defaults_only=True, allow_custom_entries=True)  # as `generate`, transformers 5.23
    refuse_modes(config, other_kwargs, "an embedding search")
    for name in PER_STEP_OUTPUTS:
        if getattr(config, name, None):
            raise ValueError(f"`{name}` must be left out, got it: a search returns sequences only.")
    for name in (name for name, is_used in _prompt_readers(config).items() if is_used):
        raise ValueError(
            f"`{name}` must be left out with an embedding search, as its answers follow no tokens, but it is set. Remove it, "
            "also from the model's `generation_config`."
        )
    config.forced_bos_token_id = None  # `generate` ignores it behind a prompt, and answers of embeddings begin without one
    if (config.num_return_sequences or 1) > 1:
        raise ValueError(
            f"`num_return_sequences` must be 1, got {config.num_return_sequences}. Repeat the prompt to get several answers."
        )
    for name in CACHES:
        if name in other_kwargs:
            raise ValueError(f"`{name}` must be left out, got it: every answer of a search needs a cache of its own.")
    eos = config.eos_token_id
    eos_ids = () if eos is None else tuple(torch.as_tensor(eos).flatten().tolist())
    prompt_pad_id = config.pad_token_id if config.pad_token_id not in eos_ids else None
    if config.pad_token_id is None:
        config.pad_token_id = eos_ids[0] if eos_ids else 0
    if config.max_new_tokens is None:
        config.max_new_tokens = DEFAULT_LENGTH if config.max_length is None else max(1, config.max_length - n_prompt)
    config.max_length = None
    if config.stop_strings:
        other_kwargs["tokenizer"] = tokenizer
    return ResolvedGeneration(config, other_kwargs, eos_ids, prompt_pad_id)


def _prompt_readers(config: GenerationConfig) -> dict[str, bool]:
    """Whether each setting is in use that reads the ids of a prompt: embeddings have none (transformers 5.24)."""
    return {
        **encoder_settings(config),
        "guidance_scale": config.guidance_scale not in (None, 1.0),
        "token_healing": bool(config.token_healing),
        "prefill_chunk_size": config.prefill_chunk_size is not None,
    }


@dataclass(frozen=True)
class GenerationRow:
    """One prompt to answer.

    Attributes:
        embeds: (T, D) in the model's dtype.
        seed: The seed of the row's random stream, used if answers are sampled.
    """

    embeds: Tensor
    seed: int


class RowStreams(LogitsProcessor):
    """Turns greedy search into sampling by the Gumbel-max trick, with a random stream for each row.

    Args:
        seeds: (B,) the rows' seeds.
        temperature: Above 0.
    """

    def __init__(self, seeds: Sequence[int], temperature: float):
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return (B, V) scores whose largest is a sample."""
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=generator) for generator in self._generators])
        gumbel = -(-uniform.clamp_min(torch.finfo(torch.float32).tiny).log()).log()
        return scores / self._temperature + gumbel.to(scores)


class BatchedGenerator:
    """Answers rows in as few calls of `generate` as the token budget allows.

    Args:
        model: The target.
        generation: How each answer is generated. Its sampling settings are not used.
        max_batch_tokens: The most tokens in one call: rows times their padded length, answer included.
        temperature: 0 for greedy search, or for beams if `generation` asks for them.

    Raises:
        ValueError: The temperature asks for sampled beams.
    """

    def __init__(self, model: PreTrainedModel, generation: ResolvedGeneration, max_batch_tokens: int, temperature: float):
        self._n_beams = generation.config.num_beams or 1
        if temperature > 0.0 and self._n_beams > 1:
            raise ValueError(f"`probe_temperature` must be 0 for beams, got {temperature} for {self._n_beams} beams.")
        self._model = model
        self._generation = generation
        self._max_batch_tokens = max_batch_tokens
        self._temperature = temperature
        self._config = copy.deepcopy(generation.config)
        self._config.update(
            do_sample=False, num_return_sequences=1, return_dict_in_generate=False, output_scores=False, **SAMPLING
        )
        self._kwargs = {name: value for name, value in generation.kwargs.items() if name != "logits_processor"}
        self._processors = list(generation.kwargs.get("logits_processor") or [])

    def n_tokens(self, n_prompt: int) -> int:
        """The number of tokens that a prompt of this length takes with its answer, for all beams.

        Raises:
            ValueError: One call may not have so many.
        """
        n_tokens = (n_prompt + self._generation.n_new) * self._n_beams
        if n_tokens > self._max_batch_tokens:
            raise ValueError(
                f"`max_batch_tokens` must hold one prompt and its answer, got {self._max_batch_tokens} for {n_tokens} tokens. "
                "Raise it, or shorten `max_new_tokens`."
            )
        return n_tokens

    def answers(self, rows: Sequence[GenerationRow]) -> Iterator[list[tuple[int, list[int]]]]:
        """Answer all rows.

        Returns:
            One list for each batch, as soon as it is generated: the row's number and the ids of its answer, end included.

        Raises:
            ValueError: A single row does not fit the budget.
        """
        for numbers in self._batches(rows):
            sequences = self._generate([rows[n] for n in numbers])
            yield [(n, self._generation.up_to_end(ids)) for n, ids in zip(numbers, sequences.tolist(), strict=True)]

    def _batches(self, rows: Sequence[GenerationRow]) -> Iterator[list[int]]:
        """The numbers of rows that are answered together. Their lengths are similar, so that a batch has little padding."""
        batch: list[int] = []
        for n in sorted(range(len(rows)), key=lambda n: len(rows[n].embeds)):
            width = self.n_tokens(len(rows[n].embeds))
            if (len(batch) + 1) * width > self._max_batch_tokens:
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch

    @torch.no_grad()
    def _generate(self, rows: Sequence[GenerationRow]) -> Tensor:
        """Generate the ids (B, length) of new tokens."""
        processors = list(self._processors)
        if self._temperature > 0.0:
            processors.append(RowStreams([row.seed for row in rows], self._temperature))
        model_class: Any = type(self._model)
        sequences = model_class.generate(
            self._model,
            **{**self._kwargs, **left_padded([row.embeds for row in rows])},
            generation_config=self._config,
            logits_processor=LogitsProcessorList(processors),
        )
        return torch.as_tensor(sequences)
