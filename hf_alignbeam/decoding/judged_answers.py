"""JudgedAnswers: the answers of one call: how a text is judged, and how tokens are committed to an answer and emitted.

Knows answers, verdicts and the history of scores. Does not know when an answer is judged, or what follows from a verdict.
Committed tokens are never taken back, and only they are emitted.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.begun_answers import continued
from hf_alignbeam.chat.conversations import Message, ParsedPrompt
from hf_alignbeam.decoding.policy import Policy
from hf_alignbeam.decoding.records import Answer, JudgedPrefix
from hf_alignbeam.decoding.row_batch import RowBatch
from hf_alignbeam.judges.failsafe import CheckedVerdicts, JudgeCalls, JudgeError, reason
from hf_alignbeam.tokenization.seen_text import seen_bytes
from hf_alignbeam.tokenization.vocabulary import decode
from hf_alignbeam.utils.timed_calls import Pending

_log = logging.getLogger(__name__)

#: The tokens of a text, and the text itself.
JudgedText = tuple[list[int], str]


class ScoreHistory:
    """By step, the scores or logits (B, V) from which the answers' tokens were drawn."""

    def __init__(self, n_rows: int):
        self._n_rows = n_rows
        self.steps: list[Tensor] = []

    def keep(self, step: int, rows: Sequence[int], values: Tensor) -> None:
        """Keep the values of some answers at one step."""
        while len(self.steps) <= step:
            self.steps.append(values.new_full((self._n_rows, values.shape[-1]), -torch.inf))
        self.steps[step][list(rows)] = values

    def forget(self, row: int, step: int) -> None:
        """Drop the values of an answer from one step on."""
        for values in self.steps[step:]:
            values[row] = -torch.inf


@dataclass(frozen=True)
class JudgeRequest:
    """Some texts that the judge is asked about.

    Attributes:
        answers: The answer of each text.
        texts: The tokens of each text, and the text itself.
        new: The numbers of the texts on which there is no verdict yet.
        exchanges: The conversations and the responses to judge.
        pending: The judge's call, where it runs beside other work; None where it waits for `JudgedAnswers.harms`.
    """

    answers: Sequence[Answer]
    texts: Sequence[JudgedText]
    new: list[int]
    exchanges: tuple[list[list[Message]], list[str]]
    pending: Pending[CheckedVerdicts] | None

    @property
    def is_out(self) -> bool:
        """Whether the judge was asked beside other work, and has not answered yet."""
        return self.pending is not None and not self.pending.is_done


class JudgedAnswers:
    """The answers of one call of `generate`.

    Args:
        prompts: The prompt of each row.
        judge: The judge, as this call asks it.
        policy: Which verdicts pass.
        tokenizer: The target's tokenizer.
        token_bytes: The bytes of its tokens.
        emit: Is called with tokens as they are committed.
        is_traced: Whether to record the texts that are judged, and the rollbacks.
        keeps_scores, keeps_logits: Whether to keep these for `generate`'s output.
    """

    def __init__(
        self,
        prompts: Sequence[ParsedPrompt],
        judge: JudgeCalls,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        token_bytes: Sequence[bytes | None],
        emit: Callable[[list[int]], None],
        is_traced: bool,
        keeps_scores: bool,
        keeps_logits: bool,
    ):
        self._judge = judge
        self._policy = policy
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes
        self._emit = emit
        self.is_traced = is_traced
        unknown = [math.nan] * (policy.num_candidates + 1)
        self.answers = [Answer(number, prompt, list(unknown)) for number, prompt in enumerate(prompts)]
        self.scores = ScoreHistory(len(prompts)) if keeps_scores else None
        self.logits = ScoreHistory(len(prompts)) if keeps_logits else None
        self.n_judge_calls = 0
        self._has_warned = False

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """The bytes of some tokens."""
        return decode(self._token_bytes, ids)

    def seen_bytes_of(self, ids: Sequence[int]) -> bytes:
        """What a user sees of some tokens: the judge and `on_fail` read that."""
        return seen_bytes(self._tokenizer, self._token_bytes, ids)

    def text_of(self, answer: Answer, ids: Sequence[int]) -> str:
        """The text that the judge reads where an answer consists of these tokens: the prefill is part of it."""
        return continued(answer.prompt, self.seen_bytes_of(ids)).prefill.decode(errors="replace").strip()

    def written(self, batch: RowBatch, row: int) -> JudgedText:
        """The tokens of a row's answer, and their text."""
        ids = batch.ids(row)
        return ids, self.text_of(batch.answers[row], ids)

    def ask(self, answers: Sequence[Answer], texts: Sequence[JudgedText]) -> JudgeRequest:
        """Ask for a verdict on one text of each answer; a text equal to the committed one keeps its verdict.

        Args:
            answers: The answers; one may occur several times.
            texts: The tokens of each text, and the text itself.
        """
        new = [n for n, (answer, (_, text)) in enumerate(zip(answers, texts, strict=True)) if answer.text != text]
        exchanges = [answers[n].prompt.messages for n in new], [texts[n][1] for n in new]
        return JudgeRequest(answers, texts, new, exchanges, self._judge.start(*exchanges) if new else None)

    def judge(self, answers: Sequence[Answer], texts: Sequence[JudgedText]) -> list[float]:
        """As `ask`, and wait for the verdicts."""
        return self.harms(self.ask(answers, texts))

    def harms(self, request: JudgeRequest) -> list[float]:
        """The harm of each text, as soon as the judge has answered; NaN where it gave no verdict.

        Raises:
            JudgeError: There is no verdict, and the policy says to raise.
        """
        answers, texts, new = request.answers, request.texts, request.new
        harm = [answer.harm for answer in answers]
        if not new:
            return harm
        verdicts = self._judge.each_or_none(*request.exchanges) if request.pending is None else request.pending.result()
        self.n_judge_calls += verdicts.n_calls
        if self._policy.on_judge_error == "raise" and None in verdicts.harm:
            raise JudgeError(f"The judge gave no verdict: {reason(verdicts.errors[-1])}", verdicts.errors[-1])
        self._warn_missing(verdicts)
        for n, verdict in zip(new, verdicts.harm, strict=True):
            harm[n] = math.nan if verdict is None else verdict
            answers[n].n_judged += 1
            if self.is_traced:
                answers[n].judged_prefixes.append(JudgedPrefix(texts[n][0], harm[n], self.limit(answers[n])))
        return harm

    def _warn_missing(self, verdicts: CheckedVerdicts) -> None:
        """Log once that texts lack a verdict and so do not pass: else a failing judge would silently refuse everything."""
        if None in verdicts.harm and not self._has_warned:
            self._has_warned = True
            n_missing, why = verdicts.harm.count(None), reason(verdicts.errors[-1])
            _log.warning("The judge gave no verdict on %d of %d texts, which do not pass: %s", n_missing, len(verdicts.harm), why)

    def limit(self, answer: Answer) -> float:
        """The highest harm that passes in an answer."""
        return self._policy.limit(answer.was_flagged)

    @property
    def judge_is_lost(self) -> bool:
        """Whether the judge has hung too often, so that no text gets a verdict any more."""
        return self._judge.is_lost

    def commit(self, batch: RowBatch, row: int, ids: list[int], text: str, harm: float, is_done: bool) -> None:
        """Commit the first tokens `ids` of a row to its answer, and emit those that are new."""
        answer = batch.answers[row]
        new = ids[len(answer.ids) :]
        answer.divergences = batch.divergences[row][: len(ids)]
        answer.ids, answer.text, answer.harm, answer.is_done = ids, text, harm, is_done
        self._emit(new)  # last: a streamer may raise, and what has left must be known

    def end_with(self, answer: Answer, ids: list[int], harm: float, chosen: int) -> None:
        """End an answer with tokens that were not drawn, such as the refusal's; they become certain in the scores."""
        for history in (self.scores, self.logits):
            for step, i in enumerate(ids, start=len(answer.ids)):
                if history is not None:
                    certain = torch.full_like(history.steps[0][:1], -torch.inf)
                    certain[0, i] = 0.0
                    history.keep(step, [answer.number], certain)
        answer.ids = [*answer.ids, *ids]
        answer.harm, answer.chosen, answer.is_done = harm, chosen, True
        self._emit(ids)

    @property
    def keeps_steps(self) -> bool:
        """Whether scores or logits are kept."""
        return self.scores is not None or self.logits is not None

    def keep_step(self, batch: RowBatch, rows: Sequence[int], step: int, scores: Tensor, logits: Tensor) -> None:
        """Keep the scores and logits (rows of the batch, V) from which some rows draw at one step."""
        numbers = [batch.answers[row].number for row in rows]
        for history, values in ((self.scores, scores), (self.logits, logits)):
            if history is not None:
                history.keep(step, numbers, values[list(rows)])

    def forget_steps(self, answer: Answer, step: int) -> None:
        """Drop what is kept of an answer from one step on, because its tokens are taken back."""
        for history in (self.scores, self.logits):
            if history is not None:
                history.forget(answer.number, step)
