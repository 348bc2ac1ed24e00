"""JudgedDecoding: the loop of one call: write to the next check, judge, commit what passes, and roll back what does not.

Knows batches of rows and the lengths at which they are judged. Does not know how a row is written (`row_writer`), or what
happens to a flagged answer (`rollback`). All active rows have the same committed length, and at each check the same length, so
that they share their forwards. While a remote judge reads, some are written ahead of it.
"""

import math

from hf_alignbeam.decoding.judged_answers import JudgedAnswers, JudgedText, JudgeRequest
from hf_alignbeam.decoding.policy import Policy
from hf_alignbeam.decoding.records import Answer
from hf_alignbeam.decoding.rollback import BatchRow, Rollback, Rollbacks
from hf_alignbeam.decoding.row_batch import RowBatch
from hf_alignbeam.decoding.row_writer import RowWriter
from hf_alignbeam.decoding.target_rows import TargetRows


class JudgedDecoding:
    """One call of `generate`.

    Args:
        target: The prompts, which have not been read yet.
        writer: Writes the rows.
        answers: The answers of the call.
        rollback: Replaces flagged text.
        policy: When answers are judged, and which verdicts pass.
    """

    def __init__(self, target: TargetRows, writer: RowWriter, answers: JudgedAnswers, rollback: Rollback, policy: Policy):
        self._writer = writer
        self._answers = answers
        self._rollback = rollback
        self._policy = policy
        rows = answers.answers
        self._batches = [RowBatch(target, list(rows), [True] * len(rows), [None] * len(rows), [[] for _ in rows])]
        self._n_committed = 0

    def run(self) -> None:
        """Write every answer to its end.

        Raises:
            JudgeError: There is no verdict, and the policy says to raise.
        """
        n_next = self._policy.next_check(None)
        try:
            if self._policy.escalation == "always":
                (batch,) = self._batches
                batch.logits[0] = logits = self._writer.read(batch)
                self._answers.keep_step(batch, [], 0, logits, logits)  # of no row: a refusal needs the vocabulary's width
                self._replace({(batch, 0): list(range(len(batch.answers)))}, n_next)
                n_next = self._policy.next_check(self._n_committed)
            while self._batches:
                self._write(n_next)
                rows = [(batch, row) for batch in self._batches for row, active in enumerate(batch.active) if active]
                request = self._answers.ask(*self._texts(rows))
                self._write_ahead(request, n_next)
                flagged = self._check(rows, request)
                self._replace(self._rollback.cut_back(flagged, self._n_committed), n_next)
                n_next = self._policy.next_check(self._n_committed)
        finally:
            for batch in self._batches:
                batch.end_steering()

    def _write(self, n_next: int | None) -> None:
        """Write every active row to a length, or to its end; no further once no verdict is to be had."""
        for batch in self._batches:
            while batch.unfinished and batch.n_written != n_next and not self._answers.judge_is_lost:
                self._step(batch, self._n_committed)

    def _write_ahead(self, request: JudgeRequest, n_asked: int | None) -> None:
        """Speculative continuation: while the judge is asked about the first `n_asked` tokens, write on, up to the next check.

        What is written meanwhile is what will be written if the text passes. It is not emitted before that.
        """
        while request.is_out and n_asked is not None:
            n_next = self._policy.next_check(n_asked)
            ahead = [batch for batch in self._batches if batch.unfinished and batch.n_written != n_next]
            if not ahead:
                return
            for batch in ahead:
                batch.n_asked = n_asked
                self._step(batch, n_asked)

    def _step(self, batch: RowBatch, n_committed: int) -> None:
        """Write one token of every row, where so many are committed, or will be."""
        n_written, logits = batch.n_written, self._writer.read(batch)
        if n_written in self._rollback.rollback_points(n_committed, n_written + 1):
            batch.logits[n_written] = logits
        scores = self._writer.scores(batch, logits)
        if self._answers.keeps_steps:
            rows = [row for row, answer in enumerate(batch.answers) if batch.active[row] or answer.chosen == 0]
            self._answers.keep_step(batch, rows, n_written, scores, logits)
        self._writer.write(batch, self._writer.draw(batch, scores), scores)

    def _texts(self, rows: list[BatchRow]) -> tuple[list[Answer], list[JudgedText]]:
        """The answers of rows, and their texts."""
        return [batch.answers[row] for batch, row in rows], [self._answers.written(batch, row) for batch, row in rows]

    def _check(self, rows: list[BatchRow], request: JudgeRequest) -> list[BatchRow]:
        """Commit the text of the rows that pass; return the others."""
        harms, flagged = self._answers.harms(request), []
        for (batch, row), (ids, text), harm in zip(rows, request.texts, harms, strict=True):
            answer, has_ended = batch.answers[row], batch.has_ended(row)
            passes = harm <= self._answers.limit(answer)
            batch.active[row] = passes and not has_ended
            if passes:
                answer.candidate_harm[0] = harm if answer.chosen == 0 else answer.candidate_harm[0]
                self._answers.commit(batch, row, ids, text, harm, is_done=has_ended)
            else:
                answer.candidate_harm = [harm] + [math.nan] * self._policy.num_candidates
                answer.was_flagged = True
                flagged.append((batch, row))
        return flagged

    def _replace(self, rollbacks: Rollbacks, n_next: int | None) -> None:
        """Replace the text of rows that roll back, and drop batches without an active row."""
        for (batch, n_kept), rows in rollbacks.items():
            new = self._rollback.replace(batch, rows, n_kept, n_next)
            if new is not None:
                self._batches.append(new)
        for batch in self._batches:
            if not any(batch.active):
                batch.end_steering()
        self._batches = [batch for batch in self._batches if any(batch.active)]
        self._n_committed = n_next or 0  # None where every answer is at its end
        for batch in self._batches:
            batch.n_asked = None
            batch.logits = {n: logits for n, logits in batch.logits.items() if n >= self._n_committed}
