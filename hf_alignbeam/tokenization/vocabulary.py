"""A tokenizer as byte strings with ids: ids to bytes, and bytes to ids.

Knows one tokenizer, but not the quirks of its kind (`backends`). Knows nothing of models, templates or a second vocabulary.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.tokenization.backends import read_backend
from hf_alignbeam.utils.method_cache import cached_method


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """Return the bytes that each token id stands for inside a text.

    Args:
        tokenizer: A tokenizer with a `tokenizers` or a mistral-common back end.

    Returns:
        One entry for each id below `len(tokenizer)` (or up to the highest id, where ids have gaps): its bytes, or None for a
        special token, the unknown token or an id without a token. A word-start mark counts as the space it stands for, also at
        the start of a text.

    Raises:
        ValueError: The tokenizer has another back end.

    Example:
        >>> token_bytes(AutoTokenizer.from_pretrained("gpt2"))[:3]
        [b'!', b'"', b'#']
    """
    return read_backend(tokenizer).tokens


def decode(tokens: Sequence[bytes | None], ids: Iterable[int]) -> bytes:
    """Return the bytes of several ids in a row, given the `token_bytes`. Ids past their end and ids without bytes add nothing."""
    return b"".join([tokens[i] or b"" for i in ids if i < len(tokens)])


class Vocabulary:
    """A tokenizer as a set of byte strings, with an encoder for the middle of a text (no dummy space in front).

    Args:
        tokenizer: As for `token_bytes`.
        eos_ids: The ids that end an answer; by default the tokenizer's own `eos_token_id`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Iterable[int] | None = None):
        self.backend = read_backend(tokenizer)
        default = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.eos_ids = tuple(sorted(set(default if eos_ids is None else eos_ids)))
        self.tokens = [None if i in self.eos_ids else token for i, token in enumerate(self.backend.tokens)]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def widths(self) -> range:
        """The numbers of logits that a model of this tokenizer may have."""
        return logits_widths(self.tokens)

    def same_ids(self, other: "Vocabulary") -> bool:
        """Whether both vocabularies hold the same tokens under the same ids."""
        return self.backend is other.backend or (len(self) == len(other) and self.backend.pieces == other.backend.pieces)

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The id of each byte string; where several tokens have the same bytes, the one that the tokenizer itself writes."""
        ids: dict[bytes, int] = {}
        duplicates: set[bytes] = set()
        for i, token in enumerate(self.tokens):
            if token:
                if token in ids:
                    duplicates.add(token)
                ids.setdefault(token, i)
        for token in duplicates:
            encoded = self.own_ids(token)
            if len(encoded) == 1:
                ids[token] = encoded[0]
        return ids

    @cached_property
    def _sorted(self) -> tuple[list[bytes], list[int]]:
        tokens = [token or b"" for token in self.tokens]
        order = sorted((i for i, token in enumerate(tokens) if token), key=tokens.__getitem__)
        return [tokens[i] for i in order], order

    @cached_property
    def longest(self) -> int:
        """The length in bytes of the longest token."""
        return max(map(len, self.by_bytes))

    def decode(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of several tokens in a row."""
        return decode(self.tokens, ids)

    def endings(self, prefix: bytes) -> tuple[list[int], list[bytes]]:
        """Return the ids of the tokens of which `prefix` is a proper prefix (one sorted range), and what follows it in each."""
        tokens, ids = self._sorted
        found = slice(bisect_right(tokens, prefix), bisect_left(tokens, prefix + b"\xff" * (self.longest + 1)))
        return ids[found], [token[len(prefix) :] for token in tokens[found]]

    @cached_method(maxsize=65_536)
    def begins_a_token(self, prefix: bytes) -> bool:
        """Whether `prefix` is a proper prefix of any token."""
        tokens, _ = self._sorted
        place = bisect_right(tokens, prefix)
        return place < len(tokens) and tokens[place].startswith(prefix)

    @cached_method(maxsize=65_536)
    def encode(self, data: bytes) -> tuple[int, ...]:
        """Encode `data` as the middle of a text: the tokenizer's own ids where they give the bytes back, else longest matches.

        Bytes without a token are left out, so the ids can stand for less than `data`.
        """
        return self._repaired(data, self.own_ids(data))

    def encode_batch(self, pieces: Sequence[bytes], repairs: bool = True) -> list[tuple[int, ...]]:
        """Encode many byte strings at once, as `encode` does; without repairs, by the tokenizer's own ids where it has any."""
        texts = [_text(data) for data in pieces]
        own = [ids if text else () for text, ids in zip(texts, self.backend.encode_batch([t or "" for t in texts]), strict=True)]
        return [ids if ids and not repairs else self._repaired(data, ids) for data, ids in zip(pieces, own, strict=True)]

    def own_ids(self, data: bytes) -> tuple[int, ...]:
        """The tokenizer's own ids, which may not give the bytes back; none for bytes that are no text."""
        text = _text(data)
        return next(iter(self.backend.encode_batch([text]))) if text else ()

    def _repaired(self, data: bytes, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The tokenizer's own ids where they stand for `data`; else longest matches, for a broken-off character or for all."""
        if self.decode(ids) == data:
            return ids
        n_whole = complete_characters(data)
        if 0 < n_whole < len(data):
            return self.encode(data[:n_whole]) + self.longest_matches(data[n_whole:])
        return self.longest_matches(data)

    def longest_matches(self, data: bytes) -> tuple[int, ...]:
        """Encode from the left by the longest token that fits: for bytes that the tokenizer cannot write (half a character)."""
        ids = []
        while data:
            n_matched = next((n for n in range(min(self.longest, len(data)), 0, -1) if data[:n] in self.by_bytes), 0)
            if n_matched:
                ids.append(self.by_bytes[data[:n_matched]])
            data = data[n_matched or 1 :]
        return tuple(ids)


def logits_widths(tokens: Sequence[bytes | None]) -> range:
    """The numbers of logits that a model with these tokens may have: models pad their vocabularies or lack special tokens."""
    n_ordinary = 1 + max(i for i, token in enumerate(tokens) if token)
    return range(n_ordinary, 1 + len(tokens) + max(64, len(tokens) // 20))


def complete_characters(data: bytes) -> int:
    """Return the length in bytes of `data` without a UTF-8 character that is broken off at its end."""
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
