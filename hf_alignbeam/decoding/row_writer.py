"""RowWriter: one decoding step for a batch of rows: read, score, draw and write, exactly as transformers' own loop does.

Knows processors, warpers, stopping criteria and random streams. Does not know why a row is written or what is judged.
"""

import copy
import hashlib
from typing import cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    WatermarkLogitsProcessor,
)

from hf_alignbeam.decoding.records import divergence
from hf_alignbeam.decoding.row_batch import RowBatch
from hf_alignbeam.steering.anchor_steering import AnchorSteering

#: The processors that `generate` puts after all of the user's. The anchor is mixed in before them, where a user's would be.
WARPERS = (
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    WatermarkLogitsProcessor,
    LogitNormalization,
)


class RowWriter:
    """Writes all rows of one call.

    Args:
        steering: The anchor.
        input_ids: (B, length) the prompts.
        logits_processor, stopping_criteria, generation_config: As `generate` prepared them.
        is_traced: Whether to record how far steering moves each token.
    """

    def __init__(
        self,
        steering: AnchorSteering,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        is_traced: bool,
    ):
        self._steering = steering
        self._is_traced = is_traced
        n_before = next((n for n, each in enumerate(logits_processor) if isinstance(each, WARPERS)), len(logits_processor))
        self._processors = list(logits_processor[:n_before])
        self._warpers = LogitsProcessorList(logits_processor[n_before:])
        self._criteria = stopping_criteria
        self._keeps_scores = bool(generation_config.return_dict_in_generate and generation_config.output_scores)
        self._has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        pad = generation_config._pad_token_tensor
        self._pad = int(pad) if pad is not None else 0
        self._streams = _streams(input_ids) if generation_config.do_sample else None

    def read(self, batch: RowBatch) -> Tensor:
        """The target's logits (rows, V) of each row's next token."""
        cost = batch.target.cost
        n_before = cost.n_tokens
        logits = batch.target.next_logits()
        for row in batch.unfinished:
            batch.answers[row].n_target_tokens += (cost.n_tokens - n_before) // len(batch.answers)
        return logits

    def scores(self, batch: RowBatch, logits: Tensor) -> Tensor:
        """The scores (rows, V) from which tokens are drawn: after the user's processors, the anchor and the warpers."""
        ids = cast(LongTensor, batch.target.input_ids)
        scores: Tensor = logits
        for processor in self._processors:
            scores = _for_rows(processor, [answer.number for answer in batch.answers])(ids, cast(FloatTensor, scores))
        unsteered = scores
        for steered in batch.steered:
            if steered.call.follower is not None and steered.state.steered_rows:
                self._steering.check_width(scores.shape[-1])
                rows = torch.tensor(steered.rows, device=scores.device)
                scores = scores.index_copy(0, rows, self._steering.steer(steered.call, steered.state, scores[rows]))
                for row in steered.state.steered_rows:
                    batch.answers[steered.rows[row]].n_steered += 1
        if self._is_traced:
            for divergences, nats in zip(batch.divergences, divergence(scores, unsteered).tolist(), strict=True):
                divergences.append(nats)
        return self._warpers(ids, cast(FloatTensor, scores))

    def draw(self, batch: RowBatch, scores: Tensor) -> Tensor:
        """The next ids (rows,)."""
        if self._streams is None:
            return scores.argmax(-1)
        prob = scores.softmax(-1)
        ids = prob.argmax(-1)
        if len(batch.own_stream) < len(batch.answers):  # as in `generate`: one draw for the whole batch, used or not
            ids = torch.multinomial(prob, num_samples=1).squeeze(1)
        rows_of_answer: dict[int, list[int]] = {}
        for row in sorted(batch.own_stream):
            rows_of_answer.setdefault(batch.answers[row].number, []).append(row)
        for number, rows in rows_of_answer.items():
            ids[rows] = torch.multinomial(prob[rows], num_samples=1, generator=self._streams[number]).squeeze(1)
        return ids

    def write(self, batch: RowBatch, ids: Tensor, scores: Tensor) -> None:
        """Append one id to every row, padding to those that have ended, and apply the stopping criteria."""
        is_padded = [
            not active or (end is not None and self._has_eos) for active, end in zip(batch.active, batch.ends, strict=True)
        ]
        pad = min(max(self._pad, 0), scores.shape[-1] - 1)  # a caller's may be no token, which a model cannot read
        batch.target.write(ids.masked_fill(torch.tensor(is_padded, device=ids.device), pad))
        written = batch.target.input_ids
        given = cast(FloatTensor, (scores,) if self._keeps_scores else None)  # `generate` gives those of all steps, or None
        batch.stopped |= {row for row, stops in enumerate(self._criteria(cast(LongTensor, written), given).tolist()) if stops}
        if self._has_eos or all(row in batch.stopped for row in batch.unfinished):
            n_written = batch.n_written
            batch.ends = [n_written if end is None and row in batch.stopped else end for row, end in enumerate(batch.ends)]
        for steered in batch.steered:
            if steered.call.follower is not None:
                ended = [n for n, row in enumerate(steered.rows) if batch.ends[row] is not None]
                steered.state = steered.call.write(written[steered.rows], ended)


def _for_rows(processor: LogitsProcessor, numbers: list[int]) -> LogitsProcessor:
    """A processor for some rows of the batch: transformers' repetition penalty stores a prompt length for each row (5.23)."""
    ignored = getattr(processor, "prompt_ignore_length", None)
    if not isinstance(processor, RepetitionPenaltyLogitsProcessor) or not isinstance(ignored, Tensor) or not ignored.dim():
        return processor
    selected = copy.copy(processor)
    selected.prompt_ignore_length = ignored[numbers]
    return selected


def _streams(input_ids: Tensor) -> list[torch.Generator]:
    """A random stream for each row, seeded from the state of the global generator, which stays as it is."""
    device = input_ids.device
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    seed = int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:6])
    return [torch.Generator(device).manual_seed(seed + row) for row in range(len(input_ids))]
