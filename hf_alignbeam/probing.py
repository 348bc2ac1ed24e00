"""Many prompts' embeddings answered at once, under a budget of tokens.

Knows `generate`, padding and random streams. Knows no judge, and not which prompt a row is a probe of.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from .embedding import left_padded

#: What would sample, and what may only be asked of a single call.
SAMPLING = {"temperature": None, "top_p": None, "top_k": None, "min_p": None, "typical_p": None}


@dataclass(frozen=True)
class Probe:
    """One prompt to answer.

    Attributes:
        embeds: (T, D) in the model's dtype; or the prompt's ids, a list.
        seed: Of its own stream, where answers are sampled.
    """

    embeds: Tensor | list[int]
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


class Prober:
    """Answers probes in as few calls of `generate` as its budget allows.

    Args:
        model: The target.
        max_batch_tokens: Rows times their padded length, answer included, in one call at most.
        temperature: 0 for greedy search.
        config: How each answer is generated; nothing in it samples any more.
        others: What else `generate` is given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_batch_tokens: int,
        temperature: float,
        config: GenerationConfig,
        others: dict[str, Any],
    ):
        self._model = model
        self._max_batch_tokens = max_batch_tokens
        self._temperature = temperature
        self._config = copy.deepcopy(config)
        self._config.update(
            do_sample=False, num_return_sequences=1, return_dict_in_generate=False, output_scores=False, **SAMPLING
        )
        self._others = {name: value for name, value in others.items() if name != "logits_processor"}
        self._processors = list(others.get("logits_processor") or [])
        self._n_new = int(config.max_new_tokens or 0)
        eos = config.eos_token_id
        self._eos = set(eos) if isinstance(eos, list) else set() if eos is None else {int(eos)}
        if config.pad_token_id is None:
            self._config.pad_token_id = min(self._eos, default=0)

    def answers(self, probes: Sequence[Probe]) -> Iterator[list[tuple[int, list[int]]]]:
        """Answer all.

        Returns:
            Batch by batch, as they are done: (number of the probe, ids of its answer, end included).

        Raises:
            ValueError: A single one does not fit the budget.
        """
        for numbers in self._batches(probes):
            made = self._generate([probes[n] for n in numbers])
            yield [(n, self.ended(row)) for n, row in zip(numbers, made.tolist(), strict=True)]

    def ended(self, ids: Sequence[int]) -> list[int]:
        """The ids of one answer up to its end."""
        n_ended = next((n for n, i in enumerate(ids, start=1) if i in self._eos), len(ids))
        return list(ids[:n_ended])

    def _batches(self, probes: Sequence[Probe]) -> Iterator[list[int]]:
        """Numbers of probes that are answered together: of like lengths, so that little of a batch is padding."""
        batch: list[int] = []
        for n in sorted(range(len(probes)), key=lambda n: len(probes[n].embeds)):
            width = len(probes[n].embeds) + self._n_new
            if width > self._max_batch_tokens:
                raise ValueError(
                    f"`max_batch_tokens` must hold one prompt and its answer, got {self._max_batch_tokens} for {width} tokens. "
                    "Raise it, or shorten `max_new_tokens`."
                )
            if (len(batch) + 1) * width > self._max_batch_tokens:
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch

    @torch.no_grad()
    def _generate(self, probes: Sequence[Probe]) -> Tensor:
        """The ids (B, length) of new tokens."""
        processors = list(self._processors)
        if self._temperature > 0.0:
            processors.append(RowStreams([probe.seed for probe in probes], self._temperature))
        inputs, n_prompt = self._inputs([probe.embeds for probe in probes])
        kind: Any = type(self._model)
        made = kind.generate(
            self._model,
            **{**self._others, **inputs},
            generation_config=self._config,
            logits_processor=LogitsProcessorList(processors),
        )
        return torch.as_tensor(made)[:, n_prompt:]

    def _inputs(self, prompts: list[Any]) -> tuple[dict[str, Tensor], int]:
        """What `generate` gets, and how many prompt ids stand in what it returns."""
        if isinstance(prompts[0], Tensor):
            return left_padded(prompts), 0
        padded = left_padded([torch.tensor(ids, device=self._model.device)[:, None] for ids in prompts])
        ids = padded["inputs_embeds"][..., 0]
        pad = int(self._config.pad_token_id or 0)
        return {"input_ids": ids.where(padded["attention_mask"] > 0, pad), "attention_mask": padded["attention_mask"]}, ids.shape[
            -1
        ]
