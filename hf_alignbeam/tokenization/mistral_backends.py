"""Reads mistral-common's tokenizers as `backends` reads those of the `tokenizers` library.

Knows the quirks of `tiktoken` and SentencePiece. Their chat templates cannot be parsed: no anchor and no target has one.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.tokenization.backends import WORD_START, Decoder


def read_mistral(tokenizer: PreTrainedTokenizerBase) -> "TekkenBackend | SentencePieceBackend | None":
    """The back end of a mistral-common tokenizer; None for another one."""
    inner = getattr(getattr(getattr(tokenizer, "tokenizer", None), "instruct_tokenizer", None), "tokenizer", None)
    if inner is None:
        return None
    return TekkenBackend(inner) if hasattr(inner, "id_to_byte_piece") else SentencePieceBackend(inner)


class TekkenBackend:
    """mistral-common's Tekken tokenizers: byte-level BPE over `tiktoken`."""

    def __init__(self, tekkenizer: Any):
        ids = range(tekkenizer.n_words)
        self.tokens = [None if tekkenizer.is_special(i) else tekkenizer.id_to_byte_piece(i) for i in ids]
        self.pieces = {token if token is not None else tekkenizer.id_to_piece(i): i for i, token in enumerate(self.tokens)}
        self._tekkenizer = tekkenizer

    def encode_batch(self, texts: Sequence[str]) -> Iterable[tuple[int, ...]]:
        return (tuple(self._tekkenizer.encode(text, bos=False, eos=False)) for text in texts)


class SentencePieceBackend:
    """mistral-common's older tokenizers: SentencePiece BPE with word-start marks and byte fallback."""

    #: Put in front of every text: it takes the dummy space and merges with no other character.
    _BREAK = "\n"

    def __init__(self, sentencepiece: Any):
        names = [sentencepiece.id_to_piece(i) for i in range(sentencepiece.n_words)]
        self.pieces = {name: i for i, name in enumerate(names)}
        decoder = Decoder(byte_level=False, byte_fallback=True, replaced=((WORD_START, " "),))
        is_text = [i != sentencepiece.unk_id and not sentencepiece.is_special(i) for i in range(len(names))]
        self.tokens = [decoder.piece_bytes(name) if text else None for name, text in zip(names, is_text, strict=True)]
        self._sentencepiece = sentencepiece
        self._n_break = len(sentencepiece.encode(self._BREAK, bos=False, eos=False))

    def encode_batch(self, texts: Sequence[str]) -> Iterable[tuple[int, ...]]:
        return (tuple(self._sentencepiece.encode(self._BREAK + text, bos=False, eos=False)[self._n_break :]) for text in texts)
