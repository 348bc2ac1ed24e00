"""What is written where no candidate passes: what somebody else has to say, and the refusal.

Knows where an answer stands. Knows no judge: what somebody else says is judged by who asked for it."""

import warnings
from collections.abc import Callable, Sequence

from hf_alignbeam.chat.conversations import Message, messages_with_prefill
from hf_alignbeam.chat.refusal import Refusal
from hf_alignbeam.decoding.row_batch import Answer

#: Says, for conversations that end in what has passed of an answer, how each goes on, or None.
OnFail = Callable[[Sequence[list[Message]]], Sequence[str | None]]


class Fallback:
    """How answers end of which no continuation passed.

    Args:
        refusal: The refusal.
        on_fail: Is asked first; None to refuse at once.
        n_most: How many tokens an answer may have; None for any number.
    """

    def __init__(self, refusal: Refusal, on_fail: OnFail | None, n_most: int | None):
        self._refusal = refusal
        self._on_fail = on_fail
        self._n_most = n_most

    def instead(self, answers: Sequence[Answer], written: Sequence[bytes]) -> list[list[int]]:
        """What `on_fail` says, after what has passed of each answer; no ids where it says nothing, or too much."""
        if self._on_fail is None or not answers:
            return [[] for _ in answers]
        asked = [answer.asked.continued(each) for answer, each in zip(answers, written, strict=True)]
        try:
            said = list(self._on_fail([messages_with_prefill(one) for one in asked]))
            if len(said) != len(answers) or not all(text is None or isinstance(text, str) for text in said):
                raise ValueError(f"it must say a text, or None, for each of {len(answers)} conversations, got {said!r}")
        except Exception as error:  # whatever it may raise: there is the refusal
            warnings.warn(f"`on_fail` failed, so these answers are refused: {error}", stacklevel=2)
            return [[] for _ in answers]
        return [
            self._refusal.replacement_ids(text, one, len(answer.ids), self._n_most) if text else []
            for text, one, answer in zip(said, asked, answers, strict=True)
        ]

    def refusal(self, answer: Answer) -> list[int]:
        """The refusal's tokens after what has passed of an answer."""
        return self._refusal.ids(answer.asked, len(answer.ids), self._n_most)
