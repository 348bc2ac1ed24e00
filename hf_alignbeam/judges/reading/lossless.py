"""Whether a tokenizer's ids hold the text that they were made of: a judge that reads less judges another text.

Knows tokens and what they stand for. Knows no model, no conversation and no verdict.
"""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_alignbeam.judges.reading.marked_letters import decomposed
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

#: What a text may lose without becoming another one: white space, invisible and control characters, variation selectors,
#: the diacritics of Latin, Greek and Cyrillic letters, the word-start mark, and what stands for half a character.
_MAY_BE_LOST = re.compile(
    "[\\s\x00-\x1f\x7f-\x9f\u00ad\u0300-\u036f\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2581"
    "\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ufffd\U000e0000-\U000e0fff]+"
)


class LossCheck:
    """Finds texts that a tokenizer cannot write, such as those that become unknown tokens.

    White space, letter case, diacritics and invisible characters may be lost: a tokenizer that reads all letters in lower case
    loses no text. Compatible characters (NFKC) count as equal.

    Args:
        tokenizer: A judge's tokenizer.
        tokens: Its `token_bytes`, if they are at hand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[bytes | None] | None = None):
        self._tokenizer = tokenizer
        self._bos = tokenizer.bos_token_id
        self._texts = _texts(tokenizer, tokens)

    def loses_text(self, text: str, ids: Sequence[int]) -> bool:
        """Whether ids stand for less than a text, or for another one.

        Args:
            text: A text; the names of special tokens are part of it.
            ids: What the tokenizer made of it. A BOS that the text does not hold is left out.
        """
        if self._texts is None:
            written = str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
            return _essence(written) != _essence(text)
        data, written_data = text.encode(errors="replace"), decode(self._texts, ids)
        if written_data == data or written_data == b" " + data:
            return False
        if ids and ids[0] == self._bos and not text.startswith(str(self._tokenizer.bos_token)):
            return self.loses_text(text, ids[1:])
        return _essence(written_data.decode(errors="replace")) != _essence(text)


def _essence(text: str) -> str:
    """A text without what it may lose."""
    return _MAY_BE_LOST.sub("", decomposed(text, "NFKD")).casefold()


def _texts(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[bytes | None] | None) -> list[bytes | None] | None:
    """What each token stands for: special tokens for their names, pieces without the marks of a word's parts.

    None for a tokenizer that is not read byte by byte.
    """
    try:
        texts = list(token_bytes(tokenizer) if tokens is None else tokens)
    except ValueError:
        return None
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        model = tokenizer.backend_tokenizer.model
        prefix, suffix = (
            (getattr(model, mark, None) or "").encode() for mark in ("continuing_subword_prefix", "end_of_word_suffix")
        )
        if prefix or suffix:
            texts = [text and (text.removeprefix(prefix).removesuffix(suffix) or text) for text in texts]
    for i, token in tokenizer.added_tokens_decoder.items():
        if i < len(texts) and texts[i] is None:
            texts[i] = token.content.encode()
    return texts
