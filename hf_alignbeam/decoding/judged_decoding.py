"""One call of the strategy: where a judge reads what is written, and which candidate goes on where it does not pass.

Knows answers, check points and verdicts. Every row that is being written has the same length and last passed at the same
point, so all of them share their forwards. What passed is never taken back, and nothing else is handed out.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.decoding.candidates import Candidates, Proposer
from hf_alignbeam.decoding.fallback import Fallback
from hf_alignbeam.decoding.policy import Policy
from hf_alignbeam.decoding.records import CandidateRecord, JudgedPrefix, RollbackRecord
from hf_alignbeam.decoding.row_batch import Answer, RowBatch, Writer, release, select_rows
from hf_alignbeam.decoding.target_rows import Target
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.failsafe import JudgeError, judge_each_or_none
from hf_alignbeam.tokenization.vocabulary import decode


class History:
    """By step, the scores or logits (B, V) that the answers' tokens were drawn by, where somebody wants them."""

    def __init__(self, n_rows: int):
        self._n_rows = n_rows
        self.steps: list[Tensor] = []

    def keep(self, step: int, rows: Sequence[int], values: Tensor) -> None:
        """Keep the values of some answers at one step."""
        while len(self.steps) <= step:
            self.steps.append(values.new_full((self._n_rows, values.shape[-1]), -torch.inf))
        self.steps[step][list(rows)] = values

    def forget(self, row: int, step: int) -> None:
        """Forget what an answer was drawn by from some step on."""
        for values in self.steps[step:]:
            values[row] = -torch.inf


class JudgedDecoding:
    """One call of `generate`.

    Args:
        target: The prompts, not read yet.
        writer: What rows are written by.
        proposer: What makes candidates.
        judge: The judge.
        policy: What passes.
        asked: What each prompt asks.
        pieces: The bytes of the target's tokens.
        endings: What is written where nothing passes.
        hand_out: Is told of tokens as they pass, the refusal's among them.
    """

    def __init__(
        self,
        target: Target,
        writer: Writer,
        proposer: Proposer,
        judge: Judge,
        policy: Policy,
        asked: Sequence[ParsedPrompt],
        pieces: Sequence[bytes | None],
        endings: Fallback,
        emit: Callable[[list[int]], None],
    ):
        self._writer = writer
        self._proposer = proposer
        self._judge = judge
        self._policy = policy
        self._pieces = pieces
        self._endings = endings
        self._emit = emit
        unknown = [math.nan] * (policy.num_candidates + 1)
        self.answers = [Answer(number, one, list(unknown)) for number, one in enumerate(asked)]
        n_rows = len(self.answers)
        self._passes = [RowBatch(target, list(self.answers), [True] * n_rows, [None] * n_rows, [[] for _ in range(n_rows)])]
        self._n_committed = 0
        self.scores: History | None = None
        self.logits: History | None = None
        self.n_judge_calls = self.n_forwards = self.n_tokens = 0

    def write(self) -> None:
        """Write every answer to its end.

        Raises:
            JudgeError: There is no verdict, and the policy says to raise.
        """
        n_next = self._policy.judge_after
        try:
            if self._policy.escalation == "always":
                (first,) = self._passes
                first.logits[0] = self._writer.read(first)
                self._escalate({(0, 0): list(range(len(self.answers)))}, n_next)
                n_next = self._next_check()
            while self._passes:
                self._go_to(n_next)
                self._check(n_next)
                n_next = self._next_check()
        finally:
            for each in self._passes:
                self._drop(each)

    def _next_check(self) -> int | None:
        return None if self._policy.judge_every is None else self._n_committed + self._policy.judge_every

    def _go_to(self, n_next: int | None) -> None:
        """Let every live row go on to a length, or to its end."""
        for each in self._passes:
            while each.going and self._writer.n_written(each) != n_next:
                self._step(each)

    def _step(self, rows: RowBatch) -> None:
        n_written, logits = self._writer.n_written(rows), self._writer.read(rows)
        if n_written in self._points(n_written + 1):
            rows.logits[n_written] = logits
        scores = self._writer.scores(rows, logits)
        known = [row for row, answer in enumerate(rows.answers) if rows.active[row] or answer.chosen == 0]
        self._keep(rows, known, n_written, scores[known], logits[known])
        self._writer.write(rows, self._writer.draw(rows, scores), scores)

    def _points(self, n_written: int) -> range:
        """Where an answer of this length may go back to: where it last passed, and every `judge_after` tokens from there.

        Further on than that, steering would not reach from one point to the next.
        """
        return range(self._n_committed, n_written, self._policy.judge_after or max(n_written, 1))

    def _check(self, n_next: int | None) -> None:
        """Judge every live row; what passes is handed out, what does not goes back to where it last passed."""
        places = [(n, row) for n, each in enumerate(self._passes) for row, active in enumerate(each.active) if active]
        written = [self._written(self._passes[n], row) for n, row in places]
        harm = self._judged([self._passes[n].answers[row] for n, row in places], written)
        flagged = []
        for (n, row), (ids, text), h in zip(places, written, harm, strict=True):
            rows = self._passes[n]
            answer = rows.answers[row]
            rows.active[row] = self._policy.passes(h) and rows.ends[row] is None
            if self._policy.passes(h):
                answer.candidate_harm[0] = h if answer.chosen == 0 else answer.candidate_harm[0]
                self._commit(rows, row, ids, text, h, is_done=rows.ends[row] is not None)
            else:
                answer.candidate_harm = [h] + [math.nan] * self._policy.num_candidates
                flagged.append((n, row, ids))
        self._escalate(self._sent_back(flagged), n_next)

    def _sent_back(self, flagged: list[tuple[int, int, list[int]]]) -> dict[tuple[int, int], list[int]]:
        """Judge what flagged answers said at the points before, and let pass what comes before the first that does not.

        Args:
            flagged: By answer the number of its pass, its row and its tokens.

        Returns:
            By the number of a pass and a point, the rows that go back there.
        """
        earlier = [(n, row, ids[:point]) for n, row, ids in flagged for point in self._points(len(ids))[1:]]
        written = [(ids, self._text(self._passes[n].answers[row], ids)) for n, row, ids in earlier]
        harm = self._judged([self._passes[n].answers[row] for n, row, _ in earlier], written) if earlier else []
        stopped: set[tuple[int, int]] = set()
        for (n, row, _), (ids, text), h in zip(earlier, written, harm, strict=True):
            if not self._policy.passes(h):
                stopped.add((n, row))
            if (n, row) not in stopped:
                self._commit(self._passes[n], row, ids, text, h, is_done=False)
        back: dict[tuple[int, int], list[int]] = {}
        for n, row, _ in flagged:
            back.setdefault((n, len(self._passes[n].answers[row].ids)), []).append(row)
        return back

    def _judged(self, answers: Sequence[Answer], written: Sequence[tuple[list[int], str]]) -> list[float]:
        """The judge's verdicts on texts of these answers, NaN where there is none; what has passed is not asked about again.

        Args:
            answers: Whose they are.
            written: The tokens of each, and what they say.
        """
        harm = [answer.harm for answer in answers]
        new = [n for n, (answer, (_, text)) in enumerate(zip(answers, written, strict=True)) if answer.text != text]
        if new:
            verdicts = judge_each_or_none(self._judge, [answers[n].asked.messages for n in new], [written[n][1] for n in new])
            self.n_judge_calls += verdicts.n_calls
            if self._policy.on_judge_error == "raise" and None in verdicts.harm:
                raise JudgeError(f"The judge gave no verdict: {verdicts.errors[-1]}") from verdicts.errors[-1]
            for n, verdict in zip(new, verdicts.harm, strict=True):
                harm[n] = math.nan if verdict is None else verdict
                answers[n].n_judged += 1
                if self._writer.notes:
                    answers[n].readings.append(JudgedPrefix(written[n][0], harm[n], self._policy.passes(harm[n])))
        return harm

    def _written(self, rows: RowBatch, row: int) -> tuple[list[int], str]:
        """The tokens of a row's answer, and what they say."""
        ids = self._writer.ids(rows, row)
        return ids, self._text(rows.answers[row], ids)

    def _text(self, answer: Answer, ids: Sequence[int]) -> str:
        return answer.asked.continued(self._bytes(ids)).prefill.decode(errors="replace").strip()

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return decode(self._pieces, ids)

    def _commit(self, rows: RowBatch, row: int, ids: list[int], text: str, harm: float, is_done: bool) -> None:
        answer = rows.answers[row]
        self._emit(ids[len(answer.ids) :])
        answer.moved = rows.moved[row][: len(ids)]
        answer.ids, answer.text, answer.harm, answer.is_done = ids, text, harm, is_done

    def _escalate(self, flagged: dict[tuple[int, int], list[int]], n_next: int | None) -> None:
        """Put a passing candidate in the place of each row that goes back to some point of its pass; else the refusal."""
        for (n, point), places in flagged.items():
            self._replace(self._passes[n], places, point, n_next)
        for each in self._passes:
            if not any(each.active):
                self._drop(each)
        self._passes = [each for each in self._passes if any(each.active)]
        if self._passes:
            self._n_committed = self._writer.n_written(self._passes[0])
        for each in self._passes:
            each.logits.clear()

    def _replace(self, rows: RowBatch, places: list[int], point: int, n_next: int | None) -> None:
        n_each = self._policy.num_candidates
        release(rows, places)
        for place in places:
            rows.active[place] = False
            for history in (self.scores, self.logits):
                if history is not None:
                    history.forget(rows.answers[place].number, point)
        asked = [rows.answers[place].asked.continued(self._bytes(rows.answers[place].ids)) for place in places]
        keeps_steps = self.scores is not None or self.logits is not None
        made = self._proposer.propose(rows, places, point, n_next, asked, keeps_steps)
        candidates = made.rows
        try:
            active = [row for row, is_live in enumerate(candidates.active) if is_live]
            written = {row: self._written(candidates, row) for row in active}
            judged = self._judged([candidates.answers[row] for row in active], [written[row] for row in active])
            harm = dict(zip(active, judged, strict=True))
            chosen, failed = [], []
            for n, place in enumerate(places):
                answer, mine = rows.answers[place], range(n * n_each, (n + 1) * n_each)
                answer.candidate_harm[1:] = [harm.get(row, math.nan) for row in mine]
                row = self._best([row for row in mine if self._policy.passes(harm.get(row, math.nan))], harm, made.logp)
                if self._writer.notes:
                    tried = [self._tried(made, each, written[each][0], point, harm[each]) for each in mine if each in written]
                    ids, number = self._writer.ids(rows, place), None if row is None else 1 + row - mine.start
                    answer.attempts.append(RollbackRecord(point, ids[point:], rows.moved[place][point : len(ids)], tried, number))
                if row is None:
                    failed.append(answer)
                    continue
                answer.chosen = 1 + row - mine.start
                self._commit(candidates, row, *written[row], harm[row], is_done=candidates.ends[row] is not None)
                for step, (scores, logits) in enumerate(made.steps[: len(answer.ids) - point], start=point):
                    self._keep(candidates, [row], step, scores[[row]], logits[[row]])
                if not answer.is_done:
                    chosen.append((row, place))
            self._end(failed)
            self._go_on(rows, candidates, chosen)
        except BaseException:
            self._drop(candidates)
            raise

    def _tried(self, made: Candidates, row: int, ids: list[int], point: int, harm: float) -> CandidateRecord:
        moved = made.rows.moved[row][point : len(ids)]
        return CandidateRecord(ids[point:], moved, harm, self._policy.passes(harm), made.logp[row])

    def _best(self, passing: list[int], harm: dict[int, float], logp: list[float]) -> int | None:
        """Of the candidates that pass, the one that goes on."""
        if self._policy.choice == "safest":
            return min(passing, key=lambda row: (harm[row], -logp[row]), default=None)
        return max(passing, key=lambda row: logp[row], default=None)

    def _go_on(self, rows: RowBatch, candidates: RowBatch, chosen: list[tuple[int, int]]) -> None:
        """Let chosen candidates go on: in the forwards of the pass they come from where it can take them, else in their own."""
        if not chosen:
            self._drop(candidates)
            return
        made = select_rows(candidates, [row for row, _ in chosen])
        places = [place for _, place in chosen]
        if not any(rows.active) or not rows.target.absorb(made.target, places):
            self._passes.append(made)
            return
        for n, place in enumerate(places):
            rows.active[place], rows.ends[place], rows.moved[place] = True, None, made.moved[n]
            rows.own_stream.add(place)
        for steered in made.steered:
            steered.places = places
        rows.steered += made.steered

    def _end(self, answers: Sequence[Answer]) -> None:
        """Write what is said instead where that passes, and the refusal elsewhere."""
        others = self._endings.instead(answers, [self._bytes(answer.ids) for answer in answers])
        said = [n for n, ids in enumerate(others) if ids]
        whole = [[*answers[n].ids, *others[n]] for n in said]
        written = [(ids, self._text(answers[n], ids)) for n, ids in zip(said, whole, strict=True)]
        harm = dict(zip(said, self._judged([answers[n] for n in said], written), strict=True)) if said else {}
        for n, answer in enumerate(answers):
            if self._policy.passes(harm.get(n, math.nan)):
                self._force(answer, others[n], harm[n], chosen=-2)
            else:
                self._force(answer, self._endings.refusal(answer), math.nan, chosen=-1)

    def _force(self, answer: Answer, ids: list[int], harm: float, chosen: int) -> None:
        """End an answer with tokens that nobody drew."""
        self._emit(ids)
        for history in (self.scores, self.logits):
            for step, i in enumerate(ids, start=len(answer.ids)):
                if history is not None and history.steps:
                    forced = torch.full_like(history.steps[0][:1], -torch.inf)
                    forced[0, i] = 0.0
                    history.keep(step, [answer.number], forced)
        answer.ids = [*answer.ids, *ids]
        answer.harm, answer.chosen, answer.is_done = harm, chosen, True

    def _keep(self, rows: RowBatch, chosen: Sequence[int], step: int, scores: Tensor, logits: Tensor) -> None:
        numbers = [rows.answers[row].number for row in chosen]
        for history, values in ((self.scores, scores), (self.logits, logits)):
            if history is not None:
                history.keep(step, numbers, values)

    def _drop(self, rows: RowBatch) -> None:
        """Let go of a pass, its cost counted."""
        rows.end()
        self.n_forwards += rows.target.n_forwards
        self.n_tokens += rows.target.n_tokens
        rows.target.n_forwards = rows.target.n_tokens = 0
