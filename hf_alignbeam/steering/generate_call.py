"""One run of steering, a call of `generate` or the candidates of one rollback: which row continues which, and which are steered.

Knows token ids, rows and the rules by which steering ends. Knows no text, no anchor distribution and no mixing rule.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_alignbeam.anchor.follower import N_BACK, Follower

#: The anchor has overruled the target where the target alone gives a written token a lower log-probability than this.
OVERRULED = math.log(0.01)


@dataclass(frozen=True)
class SteeringSchedule:
    """When a row is steered.

    Attributes:
        n_steps: The largest number of steered tokens in an answer; None for no limit.
        n_watch: The number of tokens after which an answer is steered only if the anchor has overruled the target; None for
            no such check.
        eos_ids: The ids that end an answer.
        pad_token_id: The id that `generate` writes after the end.
    """

    n_steps: int | None
    n_watch: int | None
    eos_ids: frozenset[int]
    pad_token_id: int | None

    def steers(self, was_active: bool, overruled: bool, i: int, n_written: int) -> bool:
        """Whether a row is steered after its token `i`: its answer has not ended, and the anchor was needed.

        Where `generate` was given other EOS ids, an answer may continue after one of ours; steering resumes with the next token.
        """
        if i in self.eos_ids or (self._is_watched(n_written) and not overruled):
            return False
        return was_active or i != self.pad_token_id

    def is_over(self, n_written: int, overruled: list[bool]) -> bool:
        """Whether no row will be steered any more."""
        reached_limit = self.n_steps is not None and n_written >= self.n_steps
        return reached_limit or (self._is_watched(n_written) and not any(overruled))

    def _is_watched(self, n_written: int) -> bool:
        return self.n_watch is not None and n_written >= self.n_watch


@dataclass
class CallState:
    """The rows of a call after some number of answer tokens.

    Attributes:
        input_ids: (rows, length) prompts and answers so far.
        active: By row, whether it is steered here.
        overruled: By row, whether it contains a token that the target alone would hardly have written; or whether it is a
            candidate that is steered for all of `n_steps`.
        is_over: Whether steering has ended for all rows and for good.
        target_logp: By steered row, the target's own log-probabilities (V,).
    """

    input_ids: Tensor
    active: list[bool]
    overruled: list[bool]
    is_over: bool = False
    target_logp: dict[int, Tensor] = field(default_factory=dict)

    @property
    def steered_rows(self) -> list[int]:
        """The rows that are steered here."""
        return [] if self.is_over else [row for row, active in enumerate(self.active) if active]

    def overruled_after(self, ids: list[int]) -> list[bool]:
        """By row, whether it contains a token that the target alone would hardly have written, once its next one is in `ids`."""
        asked = [row for row, logp in self.target_logp.items() if not self.overruled[row] and ids[row] < len(logp)]
        logp = torch.stack([self.target_logp[row][ids[row]] for row in asked]).tolist() if asked else []
        overruled = {row for row, value in zip(asked, logp, strict=True) if value < OVERRULED}
        return [known or row in overruled for row, known in enumerate(self.overruled)]

    def select_rows(self, parents: list[int]) -> "CallState":
        """The same state with `parents[i]` as row i."""
        active, overruled = ([values[parent] for parent in parents] for values in (self.active, self.overruled))
        target_logp = {row: self.target_logp[parent] for row, parent in enumerate(parents) if parent in self.target_logp}
        return CallState(self.input_ids[parents], active, overruled, self.is_over, target_logp)


class GenerateCall:
    """One call of `generate`, or the candidates of one rollback within it.

    Args:
        schedule: When its rows are steered.
        input_ids: (rows, length) its prompts.
        follower: The anchor, which has read the prompts.
        groups: By row, the number of its prompt: beams swap only within one prompt, even where prompts have equal ids.
        on_end: A callback for the end of the call.
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
        #: The state before the first answer token.
        self.initial = CallState(input_ids.clone(), [True] * len(input_ids), [False] * len(input_ids))
        self._states = {0: self.initial}  # the latest states, by the number of answer tokens
        self._counted = (0, 0)

    def end(self) -> None:
        """Free the anchor and run the callback."""
        self.follower = None
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    @contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        """End the call if the block raises."""
        try:
            yield
        except BaseException:
            self.end()
            raise

    def uncounted_cost(self) -> tuple[int, int]:
        """The anchor's forward passes, and the tokens fed in them, since this method was last called."""
        assert self.follower is not None
        before, self._counted = self._counted, (self.follower.cache.engine.n_forwards, self.follower.cache.engine.n_tokens)
        return self._counted[0] - before[0], self._counted[1] - before[1]

    def is_rolled_back(self, input_ids: Tensor) -> bool:
        """Whether these rows are the call's latest rows with some tokens taken back and one other token written."""
        length, latest = input_ids.shape[-1], self._states[max(self._states)].input_ids
        if not self._prompt_length < length <= latest.shape[-1] or len(input_ids) != len(latest):
            return False
        return torch.equal(input_ids[:, : length - 1], latest[:, : length - 1])

    def advance_to(self, input_ids: Tensor, ended: Sequence[int] = ()) -> CallState | None:
        """Move the call to these rows, and feed their new tokens to the anchor; return their state, or None for another call's.

        Rows are recognized by their ids: beams swap, and assisted generation takes tokens back. Those in `ended` are not steered.
        """
        n_written = input_ids.shape[-1] - self._prompt_length
        before, same_step = self._states.get(n_written - 1), self._states.get(n_written)
        parents = self._parents(input_ids[:, :-1], before.input_ids) if before is not None else None
        if before is not None and parents is not None and self._move_follower(before, n_written - 1):
            return self._write(self._select_rows(before, parents, n_written - 1), input_ids, n_written, ended)
        if same_step is None or not torch.equal(input_ids, same_step.input_ids):
            return None
        return same_step if self._move_follower(same_step, n_written) else None

    def write(self, input_ids: Tensor, ended: Sequence[int] = ()) -> CallState:
        """Move the call one token ahead, to rows that each continue the row of the same number, as in `advance_to`."""
        n_written = input_ids.shape[-1] - self._prompt_length
        return self._write(self._states[n_written - 1], input_ids, n_written, ended)

    def select_rows(self, parents: list[int]) -> CallState:
        """Make row i a copy of row `parents[i]`; rows may be dropped and repeated."""
        n_written = max(self._states)
        self._groups = self._groups[parents]
        return self._select_rows(self._states[n_written], parents, n_written)

    def _move_follower(self, state: CallState, n_written: int) -> bool:
        """Take the anchor back to a state if necessary; False where it cannot go back so far."""
        if state.is_over or self.follower is None:
            return state.is_over
        return self.follower.n_written == n_written or self.follower.go_back(n_written)

    def _select_rows(self, state: CallState, parents: list[int], n_written: int) -> CallState:
        if parents == list(range(len(state.active))):
            return state
        if self.follower is not None and not state.is_over:
            self.follower.select_rows(parents)
        state = state.select_rows(parents)
        self._states = {n_written: state}
        return state

    def _write(self, before: CallState, input_ids: Tensor, n_written: int, ended: Sequence[int]) -> CallState:
        """Feed one new token of each row to the anchor, which stops following rows that are no longer steered."""
        new = input_ids[:, -1].tolist()
        overruled = before.overruled_after(new)
        steers = self._schedule.steers
        active = [row not in ended and steers(before.active[row], overruled[row], i, n_written) for row, i in enumerate(new)]
        state = CallState(input_ids.clone(), active, overruled, before.is_over or self._schedule.is_over(n_written, overruled))
        if self.follower is not None and not state.is_over:
            self.follower.write([i if steered else None for i, steered in zip(new, active, strict=True)])
        n_kept = N_BACK if len(new) == 1 else 1
        self._states = {n: known for n, known in self._states.items() if abs(n - n_written) <= n_kept} | {n_written: state}
        if all(known.is_over for known in self._states.values()):
            self.follower = None
        return state

    def _parents(self, before: Tensor, known: Tensor) -> list[int] | None:
        """For each row of `before`, the number of an equal row of `known` with the same prompt; None where a row has none."""
        if torch.equal(before, known):
            return list(range(len(known)))
        if before.shape != known.shape:
            return None
        same = (before[:, None] == known[None]).all(-1) & (self._groups[:, None] == self._groups[None])  # (rows, known rows)
        return same.int().argmax(-1).tolist() if bool(same.any(-1).all()) else None
