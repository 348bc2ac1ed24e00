"""The target's tokens for a refusal, and for a replacement answer, which end an answer that did not pass.

Knows a tokenizer and how much of an answer is written. Knows no judge: the caller judges a replacement before it is used.
"""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.tokenization.vocabulary import decode
from hf_alignbeam.utils.checks import check_utf8

#: The default refusal text.
REFUSAL = "I cannot help with that."


class Refusal:
    """Encodes the refusal text at the beginning of an answer, or after the part of it that passed.

    Args:
        tokenizer: The target's tokenizer.
        pieces: The bytes of its tokens.
        text: The refusal text.
        eos: The id that ends it, if there is one.

    Raises:
        ValueError: `text` is blank, or holds a lone surrogate.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pieces: Sequence[bytes | None], text: str, eos: int | None):
        check_refusal(text)
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._text = text
        self._eos = [] if eos is None else [eos]

    def ids(self, prompt: ParsedPrompt, n_written: int, max_tokens: int | None) -> list[int]:
        """The tokens to write after those that an answer already has.

        Args:
            prompt: The prompt that is answered.
            n_written: How many tokens of the answer are written.
            max_tokens: How many tokens the answer may have; None for any number.

        Returns:
            The refusal and its end; the end alone where the refusal does not fit, since half a refusal may mean the opposite.
        """
        is_first = n_written == 0 and not prompt.prefill
        ids = self._encode(prompt.leading_whitespace if is_first else b"\n\n", self._text)
        if max_tokens is None:
            return [*ids, *self._eos]
        n_left = max(0, max_tokens - n_written)
        return [*(ids if len(ids) <= n_left else []), *self._eos][:n_left]

    def replacement_ids(self, text: str, prompt: ParsedPrompt, n_written: int, max_tokens: int | None) -> list[int]:
        """The tokens of another text and its end, for the same place; none where they do not all fit."""
        ids = [*self._encode(prompt.leading_whitespace, text), *self._eos]
        return ids if max_tokens is None or n_written + len(ids) <= max_tokens else []

    def _encode(self, whitespace: bytes, text: str) -> list[int]:
        """The ids of white space and a text; some tokenizers add a space to a text themselves."""
        variants = (text, whitespace.decode() + text)
        encodings = [self._tokenizer(variant, add_special_tokens=False).input_ids for variant in variants]
        expected = whitespace + text.encode()
        exact = (ids for ids in encodings if decode(self._pieces, ids) == expected)
        return list(next(exact, encodings[-1]))


def check_refusal(text: str) -> None:
    """Check the `refusal` argument.

    Raises:
        ValueError: `text` is blank, or holds a lone surrogate.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`refusal` must hold some text, got {text!r}. Leave it out for {REFUSAL!r}.")
    check_utf8("`refusal`", text)


def first_invisible(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> int | None:
    """The first of some ids of which a reader sees nothing, who decodes without special tokens; None where each is seen.

    A caller's `eos_token_id` may be a word: after a text that was judged, it would be read as a part of it. It may also be no
    token, as -1 to end no answer.
    """
    tokens = (i for i in ids if 0 <= i < len(tokenizer))
    return next((i for i in tokens if not str(tokenizer.decode([i], skip_special_tokens=True))), None)
