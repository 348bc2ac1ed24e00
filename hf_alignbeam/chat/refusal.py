"""What is written where nothing passes, in the target's tokens: what somebody else has to say, and the refusal text.

Knows a tokenizer and where an answer stands. Knows no judge: what somebody else says is judged by who asked for it.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.tokenization.vocabulary import decode

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

    def ids(self, asked: ParsedPrompt, n_written: int, n_most: int | None) -> list[int]:
        """What is written after an answer's tokens.

        Args:
            asked: What the prompt says.
            n_written: How many tokens of its answer stand already.
            n_most: How many there may be in all; None for any number.

        Returns:
            The refusal and its end; nothing but the end where there is no room, for half a refusal may say the opposite.
        """
        prefill = n_written > 0 or bool(asked.prefill)
        ids = self._encoded(b"\n\n" if prefill else asked.leading_whitespace, self._text)
        if n_most is None:
            return [*ids, *self._eos]
        n_left = max(0, n_most - n_written)
        return [*(ids if len(ids) <= n_left else []), *self._eos][:n_left]

    def instead(self, text: str, asked: ParsedPrompt, n_written: int, n_most: int | None) -> list[int]:
        """Another text and its end, the same way; nothing where there is no room for all of it."""
        ids = [*self._encoded(asked.leading_whitespace, text), *self._eos]
        return ids if n_most is None or n_written + len(ids) <= n_most else []

    def _encoded(self, leading_whitespace: bytes, text: str) -> list[int]:
        """The ids of a text that goes on from where an answer stands, white space before it."""
        ways = [self._tokenizer(each, add_special_tokens=False).input_ids for each in (text, leading_whitespace.decode() + text)]
        wanted = leading_whitespace + text.encode()
        return list(next((way for way in ways if decode(self._pieces, way) == wanted), ways[-1]))


def check_refusal(text: str) -> None:
    """Check the argument.

    Raises:
        ValueError: It says nothing.
    """
    if not text.strip():
        raise ValueError(f"`refusal` must say something, got {text!r}.")
