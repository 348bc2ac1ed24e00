"""Fallback: how an answer ends if no candidate passed: with the user's `on_fail`, or with the refusal text.

Knows prompts and the tokens of answers. Knows no judge: the caller judges what `on_fail` returns.
"""

import logging
from collections.abc import Callable, Sequence

from hf_alignbeam.chat.begun_answers import continued, messages_with_prefill
from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.chat.refusal import Refusal
from hf_alignbeam.decoding.records import Answer
from hf_alignbeam.judges.base import NoVerdictError
from hf_alignbeam.judges.failsafe import reason
from hf_alignbeam.utils.random_stream import RandomStream

_log = logging.getLogger(__name__)

#: Takes conversations, each with the committed part of its answer at the end; returns a continuation of each, or None.
OnFail = Callable[[Sequence[list[Message]]], Sequence[str | None]]


class Fallback:
    """Ends answers of which no candidate passed.

    Args:
        refusal: The refusal text.
        on_fail: The user's callable, which is tried first; None to refuse at once.
        max_length: The largest number of tokens of an answer; None for no limit.
    """

    def __init__(self, refusal: Refusal, on_fail: OnFail | None, max_length: int | None):
        self._refusal = refusal
        self._on_fail = on_fail
        self._max_length = max_length
        self._stream = RandomStream()

    def on_fail_ids(self, answers: Sequence[Answer], committed: Sequence[bytes]) -> list[list[int]]:
        """The tokens of the text that `on_fail` returns for each answer; none where it returns no text, or too long a text.

        Args:
            answers: The answers.
            committed: The committed text of each.
        """
        if self._on_fail is None or not answers:
            return [[] for _ in answers]
        prompts = [continued(answer.prompt, text) for answer, text in zip(answers, committed, strict=True)]
        try:
            with self._stream.drawing():
                texts = list(self._on_fail([messages_with_prefill(prompt) for prompt in prompts]))
            if len(texts) != len(answers) or not all(text is None or isinstance(text, str) for text in texts):
                kinds = ", ".join(sorted({type(text).__name__ for text in texts}))
                raise NoVerdictError(
                    f"it must return a text or None for each of {len(answers)} conversations, got {len(texts)} of {kinds}"
                )
            return [
                self._refusal.replacement_ids(text, prompt, len(answer.ids), self._max_length) if text else []
                for text, prompt, answer in zip(texts, prompts, answers, strict=True)
            ]
        except Exception as error:  # a user's callable may raise anything; the refusal remains
            _log.warning("`on_fail` failed, so these answers are refused: %s", reason(error))
            return [[] for _ in answers]

    def refusal_ids(self, answer: Answer) -> list[int]:
        """The tokens of the refusal text after the committed tokens of an answer."""
        return self._refusal.ids(answer.prompt, len(answer.ids), self._max_length)
