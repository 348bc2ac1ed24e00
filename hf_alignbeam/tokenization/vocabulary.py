"""The bytes behind every token id, and the ids a tokenizer gives to bytes.

Knows a tokenizer as byte strings with ids. Knows nothing of models, templates or a second vocabulary; the quirks of each
kind of tokenizer are `backend.py`'s business.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.tokenization.backends import WORD_START, read_backend
from hf_alignbeam.utils.method_cache import cached_method

#: The bytes that occur in UTF-8 text.
WRITABLE = [byte for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]

#: Texts that a tokenizer may change before it reads them, by what is then lost.
PROBED_LOSSES = {
    "white space is not kept": " a  b\n\n\tc \n",
    "composed characters are rewritten (NFC)": "e\u0301",
    "compatible characters are rewritten (NFKC)": "\ufb01 \u00bd \uff21",
    "case is not kept": "AbC",
    f"a literal {WORD_START} becomes a space": f"a{WORD_START}b",
}


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """The bytes each token id stands for inside a text.

    Args:
        tokenizer: A tokenizer with a `tokenizers` or a mistral-common back end.

    Returns:
        One entry for each id below `len(tokenizer)` (or up to the highest id, where ids have gaps): its bytes, or None for
        a special token, an unknown token or an id without a token. A word-start mark counts as the space it stands for,
        also at the start of a text.

    Raises:
        ValueError: The tokenizer has another back end.

    Example:
        >>> token_bytes(AutoTokenizer.from_pretrained("gpt2"))[:3]
        [b'!', b'"', b'#']
    """
    return read_backend(tokenizer).tokens


class Vocabulary:
    """A tokenizer seen as a set of byte strings, with an encoder for text that goes on (no dummy space in front).

    Args:
        tokenizer: As for `token_bytes`.
        eos_ids: The ids that end an answer; by default the tokenizer's own `eos_token_id`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Iterable[int] | None = None):
        self._backend = read_backend(tokenizer)
        own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.eos_ids = tuple(sorted(set(own if eos_ids is None else eos_ids)))
        self.tokens = [None if i in self.eos_ids else token for i, token in enumerate(self._backend.tokens)]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def widths(self) -> range:
        """How wide logits can be that belong to the tokenizer."""
        return logits_widths(self.tokens)

    def same_ids(self, other: "Vocabulary") -> bool:
        """Whether every token of the other vocabulary stands here under the same id."""
        return self._backend.pieces == other._backend.pieces

    @cached_property
    def losses(self) -> tuple[str, ...]:
        """What this tokenizer cannot write or does not keep, by name; empty for one that keeps every text."""
        missing = [byte for byte in WRITABLE if bytes([byte]) not in self.by_bytes]
        found = []
        if len(missing) > len(WRITABLE) // 2:
            found.append("no byte fallback: characters without a piece are lost")
        elif missing:
            found.append(f"no token for {len(missing)} bytes: {', '.join(f'0x{byte:02X}' for byte in missing)}")
        kept = {kind: self.decode(self._written(text.encode())) == text.encode() for kind, text in PROBED_LOSSES.items()}
        return (*found, *(kind for kind, whole in kept.items() if not whole))

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The canonical id of each byte string: of several, the one the tokenizer itself would write."""
        ids: dict[bytes, int] = {}
        doubles: set[bytes] = set()
        for i, token in enumerate(self.tokens):
            if token:
                if token in ids:
                    doubles.add(token)
                ids.setdefault(token, i)
        for token in doubles:
            written = self._written(token)
            if len(written) == 1:
                ids[token] = written[0]
        return ids

    @cached_property
    def _sorted(self) -> tuple[list[bytes], list[int]]:
        order = sorted((i for i, token in enumerate(self.tokens) if token), key=lambda i: self.tokens[i] or b"")
        return [self.tokens[i] or b"" for i in order], order

    @cached_property
    def longest(self) -> int:
        """The length in bytes of the longest token."""
        return max(map(len, self.by_bytes))

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of several tokens in a row."""
        return b"".join(self.tokens[i] or b"" for i in ids)

    def starting_with(self, prefix: bytes) -> list[int]:
        """The ids of every token that is longer than `prefix` and starts with it: one range of the sorted vocabulary."""
        if len(prefix) >= self.longest:
            return []
        tokens, ids = self._sorted
        return ids[bisect_right(tokens, prefix) : bisect_left(tokens, prefix + b"\xff" * (self.longest + 1))]

    def begins_a_token(self, prefix: bytes) -> bool:
        """Whether any token is longer than `prefix` and starts with it."""
        if len(prefix) >= self.longest:
            return False
        tokens, _ = self._sorted
        place = bisect_right(tokens, prefix)
        return place < len(tokens) and tokens[place].startswith(prefix)

    def encode(self, data: bytes) -> tuple[int, ...]:
        """The ids of `data` as the middle of a text: the tokenizer's own where it gives the bytes back, else a cover.

        Bytes that no token covers are left out, so the ids can stand for less than `data`.
        """
        return self._encoded(data)

    def encode_batch(self, pieces: Sequence[bytes]) -> list[tuple[int, ...]]:
        """`encode` over many byte strings at once."""
        texts = [_text(data) for data in pieces]
        known = self._backend.encode_batch([text or "" for text in texts])
        return [self._checked(data, tuple(ids) if text else ()) for data, text, ids in zip(pieces, texts, known, strict=True)]

    @cached_method(maxsize=65_536)
    def _encoded(self, data: bytes) -> tuple[int, ...]:
        return self._checked(data, self._written(data))

    def _written(self, data: bytes) -> tuple[int, ...]:
        text = _text(data)
        return tuple(self._backend.encode_batch([text])[0]) if text else ()

    def _checked(self, data: bytes, ids: tuple[int, ...]) -> tuple[int, ...]:
        if self.decode(ids) == data:
            return ids
        n_whole = complete_characters(data)
        if 0 < n_whole < len(data):
            return self._encoded(data[:n_whole]) + self._cover(data[n_whole:])
        return self._cover(data)

    def _cover(self, data: bytes) -> tuple[int, ...]:
        """The longest token first, from the left: for bytes the tokenizer cannot write (half a character, say)."""
        ids = []
        while data:
            found = next((n for n in range(min(self.longest, len(data)), 0, -1) if data[:n] in self.by_bytes), 0)
            if found:
                ids.append(self.by_bytes[data[:found]])
            data = data[found or 1 :]
        return tuple(ids)


def logits_widths(tokens: Sequence[bytes | None]) -> range:
    """How wide logits over these tokens can be: models pad their vocabularies, and some lack rows for special tokens."""
    n_ordinary = 1 + max(i for i, token in enumerate(tokens) if token)
    return range(n_ordinary, 1 + len(tokens) + max(64, len(tokens) // 20))


def complete_characters(data: bytes) -> int:
    """How many of the bytes come before a UTF-8 character that `data` breaks off."""
    for n_back in range(1, min(4, len(data)) + 1):
        byte = data[-n_back]
        if byte & 0xC0 != 0x80:
            n_bytes = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
            return len(data) - n_back if n_bytes > n_back else len(data)
    return len(data)


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
