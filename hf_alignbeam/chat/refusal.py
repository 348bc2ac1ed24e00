"""What is written where nothing passes, in the target's tokens: what somebody else has to say, and the refusal text.

Knows a tokenizer and where an answer stands. Knows no judge: what somebody else says is judged by who asked for it.
"""

import warnings
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.templates import Asked, Message, whole_conversation
from hf_alignbeam.decoding.row_batch import Answer

#: Says, for conversations that end in what has passed of an answer, how each goes on, or None.
OnFail = Callable[[Sequence[list[Message]]], Sequence[str | None]]

#: What is said where nothing that was written passes.
REFUSAL = "I cannot help with that."


class Refusal:
    """The refusal's tokens, as they stand at the beginning of an answer or after what has passed of it.

    Args:
        tokenizer: The target's.
        pieces: The bytes of its tokens.
        text: What is said.
        eos: The id that ends it, if there is one.

    Raises:
        ValueError: It says nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pieces: Sequence[bytes | None], text: str, eos: int | None):
        check_refusal(text)
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._text = text
        self._eos = [] if eos is None else [eos]

    def ids(self, asked: Asked, n_written: int, n_most: int | None) -> list[int]:
        """What is written after an answer's tokens.

        Args:
            asked: What the prompt says.
            n_written: How many tokens of its answer stand already.
            n_most: How many there may be in all; None for any number.

        Returns:
            The refusal and its end; nothing but the end where there is no room, for half a refusal may say the opposite.
        """
        begun = n_written > 0 or bool(asked.begun)
        ids = self._encoded(b"\n\n" if begun else asked.lead_in, self._text)
        if n_most is None:
            return [*ids, *self._eos]
        n_left = max(0, n_most - n_written)
        return [*(ids if len(ids) <= n_left else []), *self._eos][:n_left]

    def instead(self, text: str, asked: Asked, n_written: int, n_most: int | None) -> list[int]:
        """Another text and its end, the same way; nothing where there is no room for all of it."""
        ids = [*self._encoded(asked.lead_in, text), *self._eos]
        return ids if n_most is None or n_written + len(ids) <= n_most else []

    def _encoded(self, lead_in: bytes, text: str) -> list[int]:
        """The ids of a text that goes on from where an answer stands, white space before it."""
        ways = [self._tokenizer(each, add_special_tokens=False).input_ids for each in (text, lead_in.decode() + text)]
        wanted = lead_in + text.encode()
        return list(next((way for way in ways if b"".join(self._pieces[i] or b"" for i in way) == wanted), ways[-1]))


class Endings:
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
            said = list(self._on_fail([whole_conversation(one) for one in asked]))
            if len(said) != len(answers) or not all(text is None or isinstance(text, str) for text in said):
                raise ValueError(f"it must say a text, or None, for each of {len(answers)} conversations, got {said!r}")
        except Exception as error:  # whatever it may raise: there is the refusal
            warnings.warn(f"`on_fail` failed, so these answers are refused: {error}", stacklevel=2)
            return [[] for _ in answers]
        return [
            self._refusal.instead(text, one, len(answer.ids), self._n_most) if text else []
            for text, one, answer in zip(said, asked, answers, strict=True)
        ]

    def refusal(self, answer: Answer) -> list[int]:
        """The refusal's tokens after what has passed of an answer."""
        return self._refusal.ids(answer.asked, len(answer.ids), self._n_most)


def check_refusal(text: str) -> None:
    """Check the argument.

    Raises:
        ValueError: It says nothing.
    """
    if not text.strip():
        raise ValueError(f"`refusal` must say something, got {text!r}.")
