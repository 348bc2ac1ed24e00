"""The bytes behind every token id, and the ids a tokenizer gives to bytes: the one place that knows tokenizer quirks.

Reads the live tokenizer, never its files. Knows nothing of models, templates or a second vocabulary.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

#: The word-start mark of SentencePiece vocabularies; it stands for a space.
WORD_START = "\u2581"

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
        tokenizer: A tokenizer with a `tokenizers` back end.

    Returns:
        One entry for each id below `len(tokenizer)` (or up to the highest id, where ids have gaps): its bytes, or None for
        a special token, an unknown token or an id without a token. A word-start mark counts as the space it stands for,
        also at the start of a text.

    Raises:
        ValueError: The tokenizer has no `tokenizers` back end.

    Example:
        >>> token_bytes(AutoTokenizer.from_pretrained("gpt2"))[:3]
        [b'!', b'"', b'#']
    """
    backend = _backend(tokenizer)
    added = backend.get_added_tokens_decoder()
    pieces = backend.get_vocab(with_added_tokens=True)
    tokens: list[bytes | None] = [None] * max(len(tokenizer), 1 + max(pieces.values(), default=-1))
    decoder = _state(backend.decoder)
    unknown = {tokenizer.unk_token_id, backend.token_to_id(_unknown_token(backend) or "")}
    for token, i in pieces.items():
        if i in added:
            tokens[i] = None if added[i].special else _added_bytes(added[i].content, decoder)
        elif i not in unknown:
            tokens[i] = _piece_bytes(token, decoder)
    return tokens


class Vocabulary:
    """A tokenizer seen as a set of byte strings, with an encoder for text that goes on (no dummy space in front).

    Args:
        tokenizer: As for `token_bytes`.
        eos_ids: The ids that end an answer; by default the tokenizer's own `eos_token_id`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Iterable[int] | None = None):
        self.tokens = token_bytes(tokenizer)
        own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.eos_ids = tuple(sorted(set(own if eos_ids is None else eos_ids)))
        self._encoder = _continuation_encoder(_backend(tokenizer))
        self._pieces = backend_pieces(tokenizer)

    @cached_property
    def n_ordinary(self) -> int:
        """One more than the highest id that stands for bytes."""
        return 1 + max(i for i, token in enumerate(self.tokens) if token)

    def __len__(self) -> int:
        return len(self.tokens)

    def same_ids(self, other: "Vocabulary") -> bool:
        """Whether every token of the other vocabulary stands here under the same id, the ends of an answer included."""
        return self._pieces == other._pieces and self.eos_ids == other.eos_ids

    @cached_property
    def losses(self) -> tuple[str, ...]:
        """What this tokenizer cannot write or does not keep, by name; empty for one that keeps every text."""
        missing = [byte for byte in WRITABLE if bytes([byte]) not in self.by_bytes]
        found = []
        if len(missing) > len(WRITABLE) // 2:
            found.append("no byte fallback: characters without a piece are lost")
        elif missing:
            found.append(f"no token for {len(missing)} bytes: {', '.join(f'0x{byte:02X}' for byte in missing)}")
        kept = {kind: self.spell(self._written(text.encode())) == text.encode() for kind, text in PROBED_LOSSES.items()}
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

    def spell(self, ids: Iterable[int]) -> bytes:
        """The bytes of several tokens in a row."""
        return b"".join(self.tokens[i] or b"" for i in ids)

    def starting_with(self, prefix: bytes) -> list[int]:
        """The ids of every token that is longer than `prefix` and starts with it: one range of the sorted vocabulary."""
        if len(prefix) >= self.longest:
            return []
        tokens, order = self._sorted
        start, stop = bisect_left(tokens, prefix), bisect_left(tokens, prefix + b"\xff" * (self.longest + 1))
        return [i for i in order[start:stop] if self.tokens[i] != prefix]

    def encode(self, data: bytes) -> tuple[int, ...]:
        """The ids of `data` as the middle of a text: the tokenizer's own where it gives the bytes back, else a cover.

        Bytes that no token covers are left out, so the ids can stand for less than `data`.
        """
        return self._encoded(data)

    def encode_batch(self, pieces: Sequence[bytes]) -> list[tuple[int, ...]]:
        """`encode` over many byte strings at once."""
        texts = [_text(data) for data in pieces]
        known = self._encoder.encode_batch([text or "" for text in texts], add_special_tokens=False)
        return [
            self._checked(data, tuple(encoding.ids) if text else ())
            for data, text, encoding in zip(pieces, texts, known, strict=True)
        ]

    @lru_cache(maxsize=65_536)  # noqa: B019 (a vocabulary lives as long as its processor)
    def _encoded(self, data: bytes) -> tuple[int, ...]:
        return self._checked(data, self._written(data))

    def _written(self, data: bytes) -> tuple[int, ...]:
        text = _text(data)
        return tuple(self._encoder.encode(text, add_special_tokens=False).ids) if text else ()

    def _checked(self, data: bytes, ids: tuple[int, ...]) -> tuple[int, ...]:
        if self.spell(ids) == data:
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


def backend_pieces(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every token string with its id, added tokens included."""
    return _backend(tokenizer).get_vocab(with_added_tokens=True)


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


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The `tokenizers.Tokenizer` behind a tokenizer."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"`tokenizer` must have a `tokenizers` back end to be read byte by byte, got {type(tokenizer).__name__}. "
            "Load it through AutoTokenizer, or convert it to a PreTrainedTokenizerFast."
        )
    return tokenizer.backend_tokenizer


def _state(component: Any) -> dict[str, Any]:
    """The JSON of one part of a tokenizer's pipeline; empty where the part is not there."""
    return json.loads(component.__getstate__()) if component is not None else {}


def _unknown_token(backend: Any) -> str | None:
    return getattr(backend.model, "unk_token", None)


def _steps(state: dict[str, Any], children: str) -> list[dict[str, Any]]:
    """A pipeline part as a flat list of its steps."""
    if state.get("type") == "Sequence":
        return [step for child in state[children] for step in _steps(child, children)]
    return [state] if state else []


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    return {character: byte for byte, character in bytes_to_unicode().items()}


def _piece_bytes(token: str, decoder: dict[str, Any]) -> bytes:
    """The bytes of one ordinary token, as the tokenizer's decoder would join it into a text."""
    steps = _steps(decoder, "decoders")
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        table = _byte_of_character()
        return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
    if "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    for step in steps:
        if step["type"] == "Replace" and "String" in step["pattern"]:
            token = token.replace(step["pattern"]["String"], step["content"])
        elif step["type"] == "Metaspace":
            token = token.replace(step["replacement"], " ")
    return token.encode()


def _added_bytes(token: str, decoder: dict[str, Any]) -> bytes:
    """The bytes of an added token: plain text to a byte-level decoder, a piece like any other to the rest."""
    byte_level = any(step["type"] == "ByteLevel" for step in _steps(decoder, "decoders"))
    return token.encode() if byte_level else _piece_bytes(token, decoder)


def _continuation_encoder(backend: Any) -> Any:
    """A tokenizer around the same model that puts no dummy space in front and reads special names as plain text."""
    tokenizer_class = type(backend)
    normalizer, pre_tokenizer = _state(backend.normalizer), _state(backend.pre_tokenizer)
    steps = [step for step in _steps(normalizer, "normalizers") if step["type"] != "Prepend"]
    pre_steps = [_without_prefix(step) for step in _steps(pre_tokenizer, "pretokenizers")]
    parts = tokenizer_class.from_str(
        json.dumps(
            {
                "version": "1.0",
                "normalizer": {"type": "Sequence", "normalizers": steps},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_steps},
                "model": {"type": "BPE", "vocab": {}, "merges": []},
            }
        )
    )
    encoder = tokenizer_class(backend.model)
    if steps:
        encoder.normalizer = parts.normalizer
    if pre_steps:
        encoder.pre_tokenizer = parts.pre_tokenizer
    encoder.add_tokens([token for _, token in sorted(backend.get_added_tokens_decoder().items())])
    encoder.encode_special_tokens = True
    return encoder


def _without_prefix(step: dict[str, Any]) -> dict[str, Any]:
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return step
