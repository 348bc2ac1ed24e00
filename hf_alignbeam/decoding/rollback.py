"""Rollback: how far a flagged answer rolls back, and which text replaces what it loses.

In reading order: the lengths to which an answer may roll back (`rollback_points`), the one to which it does (`cut_back`), its
candidates from there, the best of them, the fallback if none passes, and the batch in which it continues (`replace`).
Does not decide the regular checks (`policy`), and does not know how a row is written.
"""

import math
from collections.abc import Sequence

from hf_alignbeam.chat.begun_answers import continued
from hf_alignbeam.decoding.candidates import CandidateBatch, CandidateGenerator
from hf_alignbeam.decoding.fallback import Fallback
from hf_alignbeam.decoding.judged_answers import JudgedAnswers
from hf_alignbeam.decoding.policy import Policy
from hf_alignbeam.decoding.records import Answer, CandidateRecord, RollbackRecord
from hf_alignbeam.decoding.row_batch import RowBatch

#: A batch and the number of one of its rows.
BatchRow = tuple[RowBatch, int]
#: Rows that roll back together: by batch and number of tokens kept, the rows.
Rollbacks = dict[tuple[RowBatch, int], list[int]]


class Rollback:
    """The rollbacks of one call of `generate`.

    Args:
        answers: The answers of the call.
        candidates: Writes candidates.
        fallback: Ends answers of which no candidate passes.
        policy: Where answers are judged, which verdicts pass, and which candidate is chosen.
    """

    def __init__(self, answers: JudgedAnswers, candidates: CandidateGenerator, fallback: Fallback, policy: Policy):
        self._answers = answers
        self._candidates = candidates
        self._fallback = fallback
        self._policy = policy

    def rollback_points(self, n_committed: int, n_written: int) -> range:
        """The lengths to which an answer of `n_written` tokens may roll back.

        The first is its committed length. The others follow every `judge_after` tokens: from further back, steering would end
        before the flagged text.
        """
        return range(n_committed, n_written, self._policy.judge_after or max(n_written, 1))

    def cut_back(self, flagged: Sequence[BatchRow], n_committed: int) -> Rollbacks:
        """Judge flagged answers at their later rollback points, and commit the text before the first that fails.

        Args:
            flagged: The flagged rows.
            n_committed: How many tokens of their answers are committed.

        Returns:
            The flagged rows, by the committed length to which they roll back.
        """
        prefixes = [
            (batch, row, ids[:n_kept])
            for batch, row in flagged
            for ids in [batch.ids(row)]
            for n_kept in self.rollback_points(n_committed, len(ids))[1:]
        ]
        texts = [(ids, self._answers.text_of(batch.answers[row], ids)) for batch, row, ids in prefixes]
        harms = self._answers.judge([batch.answers[row] for batch, row, _ in prefixes], texts)
        failed: set[BatchRow] = set()
        for (batch, row, ids), (_, text), harm in zip(prefixes, texts, harms, strict=True):
            if not harm <= self._answers.limit(batch.answers[row]):
                failed.add((batch, row))
            if (batch, row) not in failed:
                self._answers.commit(batch, row, ids, text, harm, is_done=False)
        rollbacks: Rollbacks = {}
        for batch, row in flagged:
            rollbacks.setdefault((batch, len(batch.answers[row].ids)), []).append(row)
        return rollbacks

    def replace(self, batch: RowBatch, rows: list[int], n_kept: int, n_next: int | None) -> RowBatch | None:
        """Roll back some rows, and continue each answer with its best passing candidate, or end it with the fallback.

        Args:
            batch: The batch of the rows.
            rows: The rows.
            n_kept: How many tokens of their answers are kept: those that are committed.
            n_next: The length at which answers are judged next; None for their ends.

        Returns:
            A new batch of the answers that continue, if they cannot continue in `batch`.
        """
        self._take_back(batch, rows, n_kept)
        if self._answers.judge_is_lost:
            self._refuse([batch.answers[row] for row in rows])
            return None
        candidates = self._propose(batch, rows, n_kept, n_next)
        try:
            harms = self._judge(candidates)
            chosen, failed = [], []
            for row, own_rows in zip(rows, candidates.rows_of, strict=True):
                answer = batch.answers[row]
                answer.candidate_harm[1 : 1 + len(own_rows)] = [harms[candidate] for candidate in own_rows]
                best = self._best(own_rows, harms, candidates.logp, self._answers.limit(answer))
                if self._answers.is_traced:
                    self._record(batch, row, n_kept, candidates, own_rows, harms, best)
                if best is None:
                    failed.append(answer)
                    continue
                answer.chosen = 1 + best - own_rows.start
                self._commit(candidates, best, harms[best], n_kept)
                if not answer.is_done:
                    chosen.append((best, row))
            self._fall_back(failed)
            return self._continue(batch, candidates.rows, chosen)
        except BaseException:
            candidates.rows.end_steering()
            raise

    def _take_back(self, batch: RowBatch, rows: list[int], n_kept: int) -> None:
        """Take back the tokens of some rows after the first `n_kept`."""
        batch.stop_steering(rows)
        for row in rows:
            batch.active[row] = False
            self._answers.forget_steps(batch.answers[row], n_kept)

    def _propose(self, batch: RowBatch, rows: list[int], n_kept: int, n_next: int | None) -> CandidateBatch:
        """Write candidates in the place of what some rows had after their first `n_kept` tokens."""
        answers = [batch.answers[row] for row in rows]
        prompts = [continued(answer.prompt, self._answers.bytes_of(answer.ids)) for answer in answers]
        return self._candidates.generate(batch, rows, n_kept, n_next, prompts)

    def _judge(self, candidates: CandidateBatch) -> list[float]:
        """The verdict on the answer that each candidate continues."""
        texts = [self._answers.written(candidates.rows, row) for row in range(len(candidates.logp))]
        return self._answers.judge(candidates.rows.answers, texts)

    def _best(self, candidates: range, harms: Sequence[float], logp: list[float], limit: float) -> int | None:
        """The candidate that continues an answer: of those whose harm is at most `limit`, the likeliest or the safest."""
        passing = [candidate for candidate in candidates if harms[candidate] <= limit]
        if self._policy.choice == "safest":
            return min(passing, key=lambda candidate: (harms[candidate], -logp[candidate]), default=None)
        return max(passing, key=lambda candidate: logp[candidate], default=None)

    def _commit(self, candidates: CandidateBatch, best: int, harm: float, n_kept: int) -> None:
        """Commit the tokens of the chosen candidate."""
        rows = candidates.rows
        ids, text = self._answers.written(rows, best)
        self._answers.commit(rows, best, ids, text, harm, is_done=rows.ends[best] is not None)
        for step, (scores, logits) in enumerate(candidates.steps[: len(ids) - n_kept], start=n_kept):
            self._answers.keep_step(rows, [best], step, scores, logits)

    def _fall_back(self, answers: Sequence[Answer]) -> None:
        """End answers with what `on_fail` returns if that passes, and with the refusal if not."""
        if self._answers.judge_is_lost:
            self._refuse(answers)
            return
        all_ids = self._fallback.on_fail_ids(answers, [self._answers.seen_bytes_of(answer.ids) for answer in answers])
        given = [n for n, ids in enumerate(all_ids) if ids]
        whole = [[*answers[n].ids, *all_ids[n]] for n in given]
        texts = [(ids, self._answers.text_of(answers[n], ids)) for n, ids in zip(given, whole, strict=True)]
        harms = dict(zip(given, self._answers.judge([answers[n] for n in given], texts), strict=True))
        for n, answer in enumerate(answers):
            if n in harms and harms[n] <= self._answers.limit(answer):
                self._answers.end_with(answer, all_ids[n], harms[n], chosen=-2)
            else:
                self._refuse([answer])

    def _refuse(self, answers: Sequence[Answer]) -> None:
        """End answers with the refusal."""
        for answer in answers:
            self._answers.end_with(answer, self._fallback.refusal_ids(answer), math.nan, chosen=-1)

    def _continue(self, batch: RowBatch, candidates: RowBatch, chosen: list[tuple[int, int]]) -> RowBatch | None:
        """Let chosen candidates continue: in the rows that they replace if these can take them, else as a batch of their own.

        Args:
            batch: The batch from which the answers come.
            candidates: The rows of all candidates.
            chosen: The row of each chosen candidate, and the row of `batch` that it replaces.
        """
        if not chosen:
            candidates.end_steering()
            return None
        continued = candidates.select_rows([candidate for candidate, _ in chosen])
        return None if batch.absorb(continued, [row for _, row in chosen]) else continued

    def _record(
        self,
        batch: RowBatch,
        row: int,
        n_kept: int,
        candidates: CandidateBatch,
        own_rows: range,
        harms: Sequence[float],
        best: int | None,
    ) -> None:
        """Add a rollback to the trace of its answer, whose candidates are the rows `own_rows`."""
        records, limit = [], self._answers.limit(batch.answers[row])
        for candidate in own_rows:
            ids, divergences = candidates.rows.ids(candidate), candidates.rows.divergences[candidate]
            divergences, logp = divergences[n_kept : len(ids)], candidates.logp[candidate]
            records.append(CandidateRecord(ids[n_kept:], divergences, harms[candidate], limit, logp))
        ids, number = batch.ids(row), None if best is None else 1 + best - own_rows.start
        divergences = batch.divergences[row][n_kept : len(ids)]
        batch.answers[row].rollbacks.append(RollbackRecord(n_kept, ids[n_kept:], divergences, records, number))
