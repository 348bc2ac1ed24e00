"""Rows that are written together: read by the target, mixed with an anchor where they are steered, drawn, and ended.

Knows one step of a loop that draws as transformers' own does. It does not know why a row is written, nor what is judged.
"""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.decoding.records import JudgedPrefix, RollbackRecord, divergence
from hf_alignbeam.decoding.target_rows import Target
from hf_alignbeam.steering.anchor_steering import AnchorSteering
from hf_alignbeam.steering.generate_call import CallState, GenerateCall

#: What `generate` puts after every processor of a user's: the anchor is mixed in before them, as in a processor.
WARPERS = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
)


@dataclass
class Answer:
    """One answer and what it has cost.

    Attributes:
        number: Its row in the batch.
        asked: What its prompt asks.
        candidate_harm: Of the target's own text and of each candidate where they were last compared.
        ids: Its tokens so far, all of them judged and passed.
        text: What they say, a begun answer included; None before anything passed.
        harm: The judge's last verdict on it.
        chosen: 0 for the target's own, k for candidate k, -1 for the refusal text, -2 for what `on_fail` said.
        is_done: Whether nothing will be added.
        n_steered: Tokens that the anchor was mixed into, in candidates too.
        n_fed: Tokens fed to the target.
        n_judged: Texts that the judge was asked about.
        readings: These texts, in order; this and what follows only where somebody asks how answers come about.
        attempts: The times that it was sent back, in order.
        moved: By token that was drawn, how far steering moved its distribution, KL(mixed || target) in nats; NaN where it was
            not steered.
    """

    number: int
    asked: ParsedPrompt
    candidate_harm: list[float]
    ids: list[int] = field(default_factory=list)
    text: str | None = None
    harm: float = math.nan
    chosen: int = 0
    is_done: bool = False
    n_steered: int = 0
    n_fed: int = 0
    n_judged: int = 0
    readings: list[JudgedPrefix] = field(default_factory=list)
    attempts: list[RollbackRecord] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)


@dataclass
class Steered:
    """Rows that an anchor steers: its call, the point it is at, and the row of the pass for each row of the call."""

    call: GenerateCall
    point: CallState
    places: list[int]


@dataclass
class RowBatch:
    """Rows that share a forward.

    Attributes:
        target: The model's side of them.
        answers: By row, whose it is.
        live: By row, whether it is still being written.
        ends: By row, how many tokens its answer had when it ended; None while it has not.
        moved: By row, how far steering moved each token of its answer, where somebody asks.
        stopped: The rows that a criterion has stopped; without an EOS, `generate` writes on until all have.
        own_stream: The rows that draw from their answer's stream; the others draw as plain `generate` draws them.
        steered: Those that an anchor steers.
        logits: By how many tokens were written, the target's (rows, V): where a row may have to go back to.
    """

    target: Target
    answers: list[Answer]
    active: list[bool]
    ends: list[int | None]
    moved: list[list[float]]
    stopped: set[int] = field(default_factory=set)
    own_stream: set[int] = field(default_factory=set)
    steered: list[Steered] = field(default_factory=list)
    logits: dict[int, Tensor] = field(default_factory=dict)

    @property
    def going(self) -> list[int]:
        """The rows that go on."""
        return [row for row, (active, end) in enumerate(zip(self.active, self.ends, strict=True)) if active and end is None]

    def end(self) -> None:
        """Let go of its anchors."""
        for steered in self.steered:
            steered.call.end()


class Writer:
    """What all rows of a call are written by.

    Args:
        steering: The anchor.
        input_ids: (B, length) the prompts.
        logits_processor, stopping_criteria, generation_config: As `generate` prepared them.
        notes: Whether somebody asks how the answers come about.
    """

    def __init__(
        self,
        steering: AnchorSteering,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        notes: bool,
    ):
        self.notes = notes
        self._steering = steering
        self._n_prompt = input_ids.shape[-1]
        n_before = next((n for n, each in enumerate(logits_processor) if isinstance(each, WARPERS)), len(logits_processor))
        self._processors = list(logits_processor[:n_before])
        self._warpers = LogitsProcessorList(logits_processor[n_before:])
        self._criteria = stopping_criteria
        self._has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        pad = generation_config._pad_token_tensor
        self._pad = int(pad) if pad is not None else 0
        self._streams = _streams(input_ids) if generation_config.do_sample else None

    def n_written(self, rows: RowBatch) -> int:
        """How many tokens the answers of a pass have."""
        return rows.target.input_ids.shape[-1] - self._n_prompt

    def ids(self, rows: RowBatch, row: int) -> list[int]:
        """The tokens of a row's answer."""
        return rows.target.input_ids[row, self._n_prompt :].tolist()[: rows.ends[row]]

    def read(self, rows: RowBatch) -> Tensor:
        """The target's logits (rows, V) of what follows each row."""
        n_before = rows.target.n_tokens
        logits = rows.target.next_logits()
        for row in rows.going:
            rows.answers[row].n_fed += (rows.target.n_tokens - n_before) // len(rows.answers)
        return logits

    def scores(self, rows: RowBatch, logits: Tensor) -> Tensor:
        """What tokens are drawn by, (rows, V): the user's processors, then the anchor, then the warpers."""
        ids = cast(LongTensor, rows.target.input_ids)
        scores: Tensor = logits
        for processor in self._processors:
            scores = _for_rows(processor, [answer.number for answer in rows.answers])(ids, cast(FloatTensor, scores))
        own = scores
        for steered in rows.steered:
            if steered.call.follower is not None and steered.point.rows:
                self._steering.check_width(scores.shape[-1])
                places = torch.tensor(steered.places, device=scores.device)
                scores = scores.index_copy(0, places, self._steering.steer(steered.call, steered.point, scores[places]))
                for row in steered.point.rows:
                    rows.answers[steered.places[row]].n_steered += 1
        if self.notes:
            for moved, nats in zip(rows.moved, divergence(scores, own).tolist(), strict=True):
                moved.append(nats)
        return self._warpers(ids, cast(FloatTensor, scores))

    def draw(self, rows: RowBatch, scores: Tensor) -> Tensor:
        """The next ids (rows,)."""
        if self._streams is None:
            return scores.argmax(-1)
        prob = scores.softmax(-1)
        ids = prob.argmax(-1)
        if len(rows.own_stream) < len(rows.answers):  # as `generate` draws: one noise for the whole batch, whoever needs it
            ids = torch.multinomial(prob, num_samples=1).squeeze(1)
        of_answer: dict[int, list[int]] = {}
        for row in sorted(rows.own_stream):
            of_answer.setdefault(rows.answers[row].number, []).append(row)
        for number, own in of_answer.items():
            ids[own] = torch.multinomial(prob[own], num_samples=1, generator=self._streams[number]).squeeze(1)
        return ids

    def write(self, rows: RowBatch, ids: Tensor, scores: Tensor) -> None:
        """Let every row go on by one id; rows that have ended get padding."""
        over = [not active or (end is not None and self._has_eos) for active, end in zip(rows.active, rows.ends, strict=True)]
        rows.target.write(ids.masked_fill(torch.tensor(over, device=ids.device), self._pad))
        written = rows.target.input_ids
        for steered in rows.steered:
            if steered.call.follower is not None:
                steered.point = steered.call.write(written[steered.places])
        rows.stopped |= {row for row, stops in enumerate(self._criteria(written, (scores,)).tolist()) if stops}
        if self._has_eos or all(row in rows.stopped for row in rows.going):
            n_written = self.n_written(rows)
            rows.ends = [n_written if end is None and row in rows.stopped else end for row, end in enumerate(rows.ends)]


def select_rows(rows: RowBatch, parents: list[int]) -> RowBatch:
    """Rows on streams of their own, row i what row `parents[i]` was; rows may be dropped and doubled."""
    rows.target.select_rows(parents)
    for steered in rows.steered:  # of candidates there is one call, a row for each of theirs
        if steered.call.follower is not None:
            steered.point = steered.call.select_rows(parents)
        steered.places = list(range(len(parents)))
    return RowBatch(
        rows.target,
        [rows.answers[i] for i in parents],
        [rows.active[i] for i in parents],
        [rows.ends[i] for i in parents],
        [list(rows.moved[i]) for i in parents],
        stopped={row for row, i in enumerate(parents) if i in rows.stopped},
        own_stream=set(range(len(parents))),
        steered=rows.steered,
    )


def release(rows: RowBatch, places: Sequence[int]) -> None:
    """Steer some rows no more: they are not written on from where their anchor stands."""
    kept = []
    for steered in rows.steered:
        parents = [n for n, place in enumerate(steered.places) if place not in places]
        if not parents or steered.call.follower is None:
            steered.call.end()
            continue
        if len(parents) < len(steered.places):
            steered.point = steered.call.select_rows(parents)
            steered.places = [steered.places[n] for n in parents]
        kept.append(steered)
    rows.steered = kept


def _for_rows(processor: LogitsProcessor, numbers: list[int]) -> LogitsProcessor:
    """A processor for some rows of the batch: one of transformers' own keeps a number for each (5.23)."""
    ignored = getattr(processor, "prompt_ignore_length", None)
    if not isinstance(processor, RepetitionPenaltyLogitsProcessor) or not isinstance(ignored, Tensor) or not ignored.dim():
        return processor
    made = copy.copy(processor)
    made.prompt_ignore_length = ignored[numbers]
    return made


def _streams(input_ids: Tensor) -> list[torch.Generator]:
    """A generator for each row, from the state of the one that `generate` draws from, which is left as it is."""
    device = input_ids.device
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    seed = int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:6])
    return [torch.Generator(device).manual_seed(seed + row) for row in range(len(input_ids))]
