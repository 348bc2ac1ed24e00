"""One call of `generate` as a processor sees it: which rows go on from which, and which of them are steered.

Knows ids, rows and the rules by which steering ends. Knows no text, no anchor distribution and no mixing rule.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_alignbeam.anchor.follower import N_BACK, Follower

#: A token that the target alone would write less often than this is one that the anchor has won.
OVERRULED = math.log(0.01)


@dataclass(frozen=True)
class SteeringSchedule:
    """When a row is steered.

    Attributes:
        n_steps: For how many tokens of its answer at most; None for all of them.
        n_watch: After how many it is not, where the target alone finds each of them likely enough; None for never.
        eos_ids: The ids that end an answer.
        pad_token_id: What `generate` writes after it.
    """

    n_steps: int | None
    n_watch: int | None
    eos_ids: frozenset[int]
    pad_token_id: int | None

    def steers(self, was_active: bool, overruled: bool, i: int, n_written: int) -> bool:
        """Whether a row is steered after its token `i`: its answer has not ended, and the anchor has had to overrule.

        A row whose answer goes on after an EOS (`generate` was given other ones) goes on being steered.
        """
        if i in self.eos_ids or (self._is_watched(n_written) and not overruled):
            return False
        return was_active or i != self.pad_token_id

    def are_over(self, n_written: int, overruled: list[bool]) -> bool:
        """Whether no row will be steered any more."""
        done = self.n_steps is not None and n_written >= self.n_steps
        return done or (self._is_watched(n_written) and not any(overruled))

    def _is_watched(self, n_written: int) -> bool:
        return self.n_watch is not None and n_written >= self.n_watch


@dataclass
class CallState:
    """One point of a call's answers.

    Attributes:
        input_ids: (rows, length) the ids up to it.
        active: Which rows are steered there.
        contested: Which rows hold a token that the target alone would hardly have written.
        over: Whether steering has ended for good.
        own_logp: By row that is steered there, the target's own log-probabilities (V,).
    """

    input_ids: Tensor
    active: list[bool]
    overruled: list[bool]
    over: bool = False
    own_logp: dict[int, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> list[int]:
        """The rows that are steered."""
        return [] if self.over else [row for row, active in enumerate(self.active) if active]

    def holds_overruled(self, row: int, i: int) -> bool:
        """Whether a row has a token that the target alone would hardly have written, its next one `i` included."""
        own_logp = self.own_logp.get(row)
        return self.overruled[row] or (own_logp is not None and i < len(own_logp) and float(own_logp[i]) < OVERRULED)

    def select_rows(self, parents: list[int]) -> "CallState":
        """The same with row i in place of row `parents[i]`."""
        return CallState(
            input_ids=self.input_ids[parents],
            active=[self.active[parent] for parent in parents],
            overruled=[self.overruled[parent] for parent in parents],
            over=self.over,
            own_logp={row: self.own_logp[parent] for row, parent in enumerate(parents) if parent in self.own_logp},
        )


class GenerateCall:
    """One call of `generate`.

    Args:
        rules: When its rows are steered.
        input_ids: (rows, length) its prompts.
        follower: The anchor, which has read them.
        groups: By row, the number of its prompt: beams swap among those of one prompt, whatever their ids.
        on_end: What is to be done once, when the call ends.
    """

    def __init__(
        self,
        schedule: SteeringSchedule,
        input_ids: Tensor,
        follower: Follower,
        groups: Sequence[int],
        on_end: Callable[[], None] | None = None,
    ):
        self.follower: Follower | None = follower
        self._on_end = on_end
        self._schedule = schedule
        self._prompt_length = input_ids.shape[-1]
        self._groups = torch.tensor(list(groups), device=input_ids.device)
        #: Where its answers begin; below, their last points, by how many tokens were written.
        self.first = CallState(input_ids.clone(), [True] * len(input_ids), [False] * len(input_ids))
        self._points = {0: self.first}
        self._counted = (0, 0)

    def end(self) -> None:
        """Let go of the anchor, and of what else the call held."""
        self.follower = None
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    @contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        """End the call where a block fails."""
        try:
            yield
        except BaseException:
            self.end()
            raise

    def spent(self) -> tuple[int, int]:
        """How many forwards of the anchor there were since the last time this was asked, and tokens fed in them."""
        if self.follower is None:
            return 0, 0
        before, self._counted = self._counted, (self.follower.cache.n_forwards, self.follower.cache.n_tokens)
        return self._counted[0] - before[0], self._counted[1] - before[1]

    def knows(self, input_ids: Tensor) -> bool:
        """Whether these rows are what the call has seen last, with some tokens taken back and one other written."""
        length, latest = input_ids.shape[-1], self._points[max(self._points)].input_ids
        if not self._prompt_length < length <= latest.shape[-1] or len(input_ids) != len(latest):
            return False
        return torch.equal(input_ids[:, : length - 1], latest[:, : length - 1])

    def reach(self, input_ids: Tensor) -> CallState | None:
        """The point that these rows are at, the anchor told of their new tokens; None where they begin another call.

        Rows are found by what they hold: beams swap, and assisted generation takes tokens back.
        """
        n_written = input_ids.shape[-1] - self._prompt_length
        before, asked_again = self._points.get(n_written - 1), self._points.get(n_written)
        parents = self._parents(input_ids[:, :-1], before.input_ids) if before is not None else None
        if before is not None and parents is not None and self._stands_at(before, n_written - 1):
            return self._write(self._swapped(before, parents, n_written - 1), input_ids, n_written)
        if asked_again is None or not torch.equal(input_ids, asked_again.input_ids):
            return None
        return asked_again if self._stands_at(asked_again, n_written) else None

    def write(self, input_ids: Tensor) -> CallState:
        """The point that these rows are at, one token after the last one, where each goes on from the row of its number."""
        n_written = input_ids.shape[-1] - self._prompt_length
        return self._write(self._points[n_written - 1], input_ids, n_written)

    def select_rows(self, parents: list[int]) -> CallState:
        """Make row i go on from row `parents[i]`; rows may be dropped and doubled."""
        n_written = max(self._points)
        self._groups = self._groups[parents]
        return self._swapped(self._points[n_written], parents, n_written)

    def _stands_at(self, point: CallState, n_written: int) -> bool:
        """Whether the anchor stands at a point, or needs not; it is taken back there where it can be."""
        if point.over or self.follower is None:
            return point.over
        if self.follower.n_written != n_written:
            if not self.follower.can_go_back(n_written):
                return False
            self.follower.go_back(n_written)
        return True

    def _swapped(self, point: CallState, parents: list[int], n_written: int) -> CallState:
        if parents == list(range(len(point.active))):
            return point
        if self.follower is not None and not point.over:
            self.follower.select_rows(parents)
        point = point.select_rows(parents)
        self._points = {n_written: point}
        return point

    def _write(self, before: CallState, input_ids: Tensor, n_written: int) -> CallState:
        """Tell the anchor of one new token a row; a row that is not steered any more is followed no more."""
        new = input_ids[:, -1].tolist()
        overruled = [before.holds_overruled(row, i) for row, i in enumerate(new)]
        active = [self._schedule.steers(before.active[row], overruled[row], i, n_written) for row, i in enumerate(new)]
        point = CallState(input_ids.clone(), active, overruled, before.over or self._schedule.are_over(n_written, overruled))
        if self.follower is not None and not point.over:
            self.follower.write([i if goes_on else None for i, goes_on in zip(new, active, strict=True)])
        n_kept = N_BACK if len(new) == 1 else 1
        self._points = {n: known for n, known in self._points.items() if abs(n - n_written) <= n_kept} | {n_written: point}
        if all(known.over for known in self._points.values()):
            self.follower = None
        return point

    def _parents(self, before: Tensor, known: Tensor) -> list[int] | None:
        """For each row (rows, length) the number of the known row of its prompt that is equal to it; None where one has none."""
        if torch.equal(before, known):
            return list(range(len(known)))
        if before.shape != known.shape:
            return None
        same = (before[:, None] == known[None]).all(-1) & (self._groups[:, None] == self._groups[None])  # (rows, known rows)
        return same.int().argmax(-1).tolist() if bool(same.any(-1).all()) else None
