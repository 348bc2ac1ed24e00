"""RowBatch: rows of answers that are written together, one forward of the target a step.

Knows rows, to which answers they belong and which of them an anchor steers. Does not know how a token is chosen, why a row is
written or what is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hf_alignbeam.decoding.records import Answer
from hf_alignbeam.decoding.target_rows import TargetRows
from hf_alignbeam.steering.generate_call import CallState, GenerateCall


@dataclass
class SteeredRows:
    """Rows of a batch that one call of the anchor steers.

    Attributes:
        call: The anchor's call.
        state: Its current state.
        rows: For each row of the call, the row of the batch.
    """

    call: GenerateCall
    state: CallState
    rows: list[int]


@dataclass(eq=False)
class RowBatch:
    """Rows that share a forward.

    Attributes:
        target: The target's inputs and cache for them.
        answers: By row, the answer to which it belongs.
        active: By row, whether it is in use: still being written, or not judged yet.
        ends: By row, how many tokens its answer had when it ended; None before that.
        divergences: By row, how far steering moved each token of its answer, if the call is traced.
        stopped: The rows that a criterion has stopped; without an EOS, `generate` continues until all are.
        own_stream: The rows that draw from the random stream of their answer; the others draw as plain `generate` does.
        steered: The rows that an anchor steers.
        logits: By number of tokens, the target's logits (rows, V) where a row may have to roll back to.
        n_asked: How many tokens of each row the judge is asked about, where more are written meanwhile; None if not.
    """

    target: TargetRows
    answers: list[Answer]
    active: list[bool]
    ends: list[int | None]
    divergences: list[list[float]]
    stopped: set[int] = field(default_factory=set)
    own_stream: set[int] = field(default_factory=set)
    steered: list[SteeredRows] = field(default_factory=list)
    logits: dict[int, Tensor] = field(default_factory=dict)
    n_asked: int | None = None

    @property
    def unfinished(self) -> list[int]:
        """The rows that are still being written."""
        return [row for row, (active, end) in enumerate(zip(self.active, self.ends, strict=True)) if active and end is None]

    @property
    def n_written(self) -> int:
        """How many answer tokens each row has, padding included."""
        return self.target.n_written

    def ids(self, row: int) -> list[int]:
        """The tokens of a row's answer, without those that were written while the judge was asked."""
        return self.target.answer_ids(row)[: self.ends[row]][: self.n_asked]

    def has_ended(self, row: int) -> bool:
        """Whether these tokens are the whole answer."""
        end = self.ends[row]
        return end is not None and (self.n_asked is None or end <= self.n_asked)

    def branch(self, rows: Sequence[int], n_kept: int) -> "RowBatch":
        """A new batch of some rows, rolled back to the first `n_kept` tokens of their answers."""
        n_before = self.target.cost.n_tokens
        target = self.target.branch(rows, self.n_written - n_kept)
        answers = [self.answers[row] for row in rows]
        for answer in answers:  # the cost where the cache could not be cropped
            answer.n_target_tokens += (self.target.cost.n_tokens - n_before) // len(answers)
        divergences = [self.divergences[row][:n_kept] for row in rows]
        return RowBatch(target, answers, [True] * len(answers), [None] * len(answers), divergences)

    def select_rows(self, parents: list[int]) -> "RowBatch":
        """A batch with `parents[i]` as row i, in which every row draws from its answer's stream.

        Rows may be dropped and repeated. The new batch takes over the target and the anchor's calls: do not use the old one.
        """
        self.target.select_rows(parents)
        for steered in self.steered:  # candidates have a single call, with a row for each of them
            if steered.call.follower is not None:
                steered.state = steered.call.select_rows(parents)
            steered.rows = list(range(len(parents)))
        return RowBatch(
            self.target,
            [self.answers[i] for i in parents],
            [self.active[i] for i in parents],
            [self.ends[i] for i in parents],
            [list(self.divergences[i]) for i in parents],
            stopped={row for row, i in enumerate(parents) if i in self.stopped},
            own_stream=set(range(len(parents))),
            steered=self.steered,
        )

    def absorb(self, other: "RowBatch", rows: list[int]) -> bool:
        """Replace some rows by the rows of another batch, which need no forwards of their own from then on.

        Returns:
            Whether this was possible; if not, nothing has changed.
        """
        if not any(self.active) or not self.target.absorb(other.target, rows):
            return False
        for n, row in enumerate(rows):
            self.active[row], self.ends[row], self.divergences[row] = True, None, other.divergences[n]
            self.own_stream.add(row)
        self.stopped = (self.stopped - set(rows)) | {rows[n] for n in other.stopped}
        for steered in other.steered:
            steered.rows = rows
        self.steered += other.steered
        return True

    def stop_steering(self, rows: Sequence[int]) -> None:
        """Steer some rows no longer."""
        kept = []
        for steered in self.steered:
            parents = [n for n, row in enumerate(steered.rows) if row not in rows]
            if not parents or steered.call.follower is None:
                steered.call.end()
                continue
            if len(parents) < len(steered.rows):
                steered.state = steered.call.select_rows(parents)
                steered.rows = [steered.rows[n] for n in parents]
            kept.append(steered)
        self.steered = kept

    def end_steering(self) -> None:
        """End the anchor's calls of this batch."""
        for steered in self.steered:
            steered.call.end()
