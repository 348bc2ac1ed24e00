"""Many prompts' embeddings answered at once, under a budget of tokens.

Knows `generate`, padding and random streams. Knows no judge, and not which prompt a row is a probe of.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from hf_alignbeam.embedding_search.embeddings import left_padded
from hf_alignbeam.embedding_search.settled import ResolvedGeneration

#: The settings that only mean something where answers are sampled.
SAMPLING = {"temperature": None, "top_p": None, "top_k": None, "min_p": None, "typical_p": None}


@dataclass(frozen=True)
class GenerationRow:
    """One prompt to answer.

    Attributes:
        embeds: (T, D) in the model's dtype.
        seed: Of its own stream, where answers are sampled.
    """

    embeds: Tensor
    seed: int


class RowStreams(LogitsProcessor):
    """Turns greedy search into sampling, every row from a stream of its own: the Gumbel-max trick.

    Args:
        seeds: (B,) of the rows.
        temperature: Above 0.
    """

    def __init__(self, seeds: Sequence[int], temperature: float):
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) whose largest is a sample."""
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=each) for each in self._generators])
        gumbel = -(-uniform.clamp_min(torch.finfo(torch.float32).tiny).log()).log()
        return scores / self._temperature + gumbel.to(scores)


class BatchedGenerator:
    """Answers rows in as few calls of `generate` as its budget allows.

    Args:
        model: The target.
        settled: How each answer is generated; nothing in it samples any more.
        max_batch_tokens: Rows times their padded length, answer included, in one call at most.
        temperature: 0 for greedy search, or for beams where `settled` asks for them.

    Raises:
        ValueError: Beams are to be sampled.
    """

    def __init__(self, model: PreTrainedModel, settled: ResolvedGeneration, max_batch_tokens: int, temperature: float):
        if temperature > 0.0 and (settled.config.num_beams or 1) > 1:
            raise ValueError(f"`probe_temperature` must be 0 for beams, got {temperature} for {settled.config.num_beams} beams.")
        self._model = model
        self._settled = settled
        self._max_batch_tokens = max_batch_tokens
        self._temperature = temperature
        self._n_beams = settled.config.num_beams or 1
        self._config = copy.deepcopy(settled.config)
        self._config.update(
            do_sample=False, num_return_sequences=1, return_dict_in_generate=False, output_scores=False, **SAMPLING
        )
        self._others = {name: value for name, value in settled.others.items() if name != "logits_processor"}
        self._processors = list(settled.others.get("logits_processor") or [])

    def n_tokens(self, n_prompt: int) -> int:
        """How many tokens a prompt of so many takes with its answer, for every beam.

        Raises:
            ValueError: That is more than one call may have.
        """
        n_tokens = (n_prompt + self._settled.n_new) * self._n_beams
        if n_tokens > self._max_batch_tokens:
            raise ValueError(
                f"`max_batch_tokens` must hold one prompt and its answer, got {self._max_batch_tokens} for {n_tokens} tokens. "
                "Raise it, or shorten `max_new_tokens`."
            )
        return n_tokens

    def answers(self, rows: Sequence[GenerationRow]) -> Iterator[list[tuple[int, list[int]]]]:
        """Answer all.

        Returns:
            Batch by batch, as they are done: (number of the row, ids of its answer, end included).

        Raises:
            ValueError: A single one does not fit the budget.
        """
        for numbers in self._batches(rows):
            made = self._generate([rows[n] for n in numbers])
            yield [(n, ended(ids, self._settled)) for n, ids in zip(numbers, made.tolist(), strict=True)]

    def _batches(self, rows: Sequence[GenerationRow]) -> Iterator[list[int]]:
        """Numbers of rows that are answered together: of like lengths, so that little of a batch is padding."""
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
        """The ids (B, length) of new tokens."""
        processors = list(self._processors)
        if self._temperature > 0.0:
            processors.append(RowStreams([row.seed for row in rows], self._temperature))
        kind: Any = type(self._model)
        made = kind.generate(
            self._model,
            **{**self._others, **left_padded([row.embeds for row in rows])},
            generation_config=self._config,
            logits_processor=LogitsProcessorList(processors),
        )
        return torch.as_tensor(made)


def ended(ids: Sequence[int], settled: ResolvedGeneration) -> list[int]:
    """The ids of one answer up to its end, the id that ends it included; without one, up to where it was filled up."""
    n_ended = next((n for n, i in enumerate(ids, start=1) if i in settled.eos_ids), None)
    if n_ended is None:
        n_ended = next((n for n in range(len(ids), 0, -1) if ids[n - 1] != settled.pad_id), 0)
    return list(ids[:n_ended])
