"""Reads a tokenizer: the bytes of its tokens, the names of its pieces, and its encoder for the middle of a text.

Knows the quirks of the `tokenizers` library, and no use of a vocabulary. Reads the loaded tokenizer, never its files.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_alignbeam.utils.method_cache import kept

#: The word-start mark of SentencePiece vocabularies; it stands for a space.
WORD_START = "\u2581"
#: Fewer texts are encoded one by one, which is faster. More are encoded in such batches: as many encodings at once as a
#: vocabulary has tokens would set off collections of garbage that take as long as encoding.
THREADED_BATCH = 512

#: Readers of tokenizers with other back ends; each returns None for a tokenizer that it does not know. The installed package and
#: folders that load judges have one. An anchor and its target need `tokenizers`.
OTHER_BACKENDS: list[Callable[[PreTrainedTokenizerBase], Any]] = []


def read_backend(tokenizer: PreTrainedTokenizerBase) -> "FastBackend":
    """Find the back end of a tokenizer: `tokenizers` or mistral-common. A `tokenizers` back end is shared by all who read it.

    Raises:
        ValueError: The tokenizer has another back end.
    """
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        if _READ.get(tokenizer, (None,))[0] != (state := read_state(tokenizer)):
            _READ[tokenizer] = state, kept(FastBackend, tokenizer)
        return _READ[tokenizer][1]
    for read in OTHER_BACKENDS:
        if (backend := read(tokenizer)) is not None:
            return backend
    raise ValueError(
        "`tokenizer` must have a `tokenizers` or a mistral-common back end to be read byte by byte, got "
        f"{type(tokenizer).__name__}. Load it through AutoTokenizer, or convert it to a PreTrainedTokenizerFast."
    )


class FastBackend:
    """A tokenizer of the `tokenizers` library: byte-level or SentencePiece-style, BPE or Unigram, with added tokens.

    It stays as it was read, whatever becomes of the tokenizer. Its `tokens` are read where they are not given.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, tokens: list[bytes | None] | None = None):
        self.tokens = _read_tokens(tokenizer) if tokens is None else tokens
        self._encoder = _continuation_encoder(tokenizer.backend_tokenizer)

    @cached_property
    def pieces(self) -> dict[str, int]:
        """The id of every piece by name, added tokens included; equal for tokenizers with the same ids."""
        return self._encoder.get_vocab(with_added_tokens=True)

    def encode_batch(self, texts: Sequence[str]) -> Iterable[tuple[int, ...]]:
        """Encode each text as the middle of a longer one: no dummy space in front, names of special tokens as plain text."""
        if len(texts) < THREADED_BATCH:
            return (tuple(self._encoder.encode(text, add_special_tokens=False).ids) for text in texts)
        batches = (texts[n : n + THREADED_BATCH] for n in range(0, len(texts), THREADED_BATCH))
        encoded = (self._encoder.encode_batch_fast(batch, add_special_tokens=False) for batch in batches)
        return (tuple(encoding.ids) for batch in encoded for encoding in batch)


@dataclass(frozen=True)
class Decoder:
    """The rules by which a tokenizer turns its pieces into text.

    Attributes:
        byte_level: Whether each character of a piece stands for one byte, by GPT-2's table.
        byte_fallback: Whether pieces such as `<0xE9>` stand for one byte.
        replaced: Pairs of a string in the pieces and its replacement in the text.
    """

    byte_level: bool
    byte_fallback: bool
    replaced: tuple[tuple[str, str], ...]

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Decoder":
        """Take the rules from the JSON of a `tokenizers` decoder."""
        steps = _steps(state, "decoders")
        kinds = {step["type"] for step in steps}
        replaced = [(step["pattern"]["String"], step["content"]) for step in steps if "String" in step.get("pattern", ())]
        replaced += [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
        return cls("ByteLevel" in kinds, "ByteFallback" in kinds, tuple(replaced))

    def piece_bytes(self, piece: str) -> bytes:
        """Return the bytes of one ordinary piece."""
        if self.byte_level:
            latin = piece.translate(_LATIN_OF_BYTE)
            return piece.encode() if _NO_BYTE in latin else latin.encode("latin-1")
        if self.byte_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        for old, new in self.replaced:
            piece = piece.replace(old, new)
        return piece.encode()


#: By each character that stands for one byte in byte-level pieces, the Latin-1 character of that byte; what others become.
_NO_BYTE = "\u0100"
_LATIN_OF_BYTE = defaultdict(lambda: _NO_BYTE, {ord(char): chr(byte) for byte, char in bytes_to_unicode().items()})

#: By tokenizer, the state in which it was read, and its back end. It is read again once its state is another.
_READ: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, FastBackend]] = WeakKeyDictionary()


def read_state(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, ...]:
    """What a `FastBackend` depends on, but for the pieces and merges that the tokenizer was trained with."""
    backend = tokenizer.backend_tokenizer
    parts = map(_state, (backend.decoder, backend.normalizer, backend.pre_tokenizer))
    some = range(0, len(tokenizer), 1 + len(tokenizer) // 64)  # would show another model; comparing all takes as long as reading
    names = tuple(map(backend.id_to_token, some))
    return len(tokenizer), tokenizer.unk_token_id, str(backend.get_added_tokens_decoder()), names, *parts


def _read_tokens(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    backend = tokenizer.backend_tokenizer
    added, pieces = backend.get_added_tokens_decoder(), backend.get_vocab(with_added_tokens=True)
    tokens: list[bytes | None] = [None] * max(len(tokenizer), 1 + max(pieces.values(), default=-1))
    decoder = Decoder.from_state(_state(backend.decoder))
    unknown = {tokenizer.unk_token_id, backend.token_to_id(getattr(backend.model, "unk_token", None) or "")}
    for token, i in pieces.items():
        if i in added and not added[i].special:
            text = added[i].content  # a byte-level decoder keeps it as text, the others treat it as a piece
            tokens[i] = text.encode() if decoder.byte_level else decoder.piece_bytes(text)
        elif i not in added and i not in unknown:
            tokens[i] = decoder.piece_bytes(token)
    return tokens


def _state(component: Any) -> dict[str, Any]:
    """Return the JSON of one component of a tokenizer's pipeline; empty where the tokenizer lacks it."""
    return json.loads(component.__getstate__()) if component is not None else {}


def _steps(state: dict[str, Any], children: str) -> list[dict[str, Any]]:
    """Flatten a pipeline component into the list of its steps."""
    if state.get("type") == "Sequence":
        return [step for child in state[children] for step in _steps(child, children)]
    return [state] if state else []


def _continuation_encoder(backend: Any) -> Any:
    """Build a tokenizer with the same model that adds no dummy space and reads the names of special tokens as plain text."""
    tokenizer_class = type(backend)
    steps = [step for step in _steps(_state(backend.normalizer), "normalizers") if step["type"] != "Prepend"]
    pre_steps = [_without_prefix(step) for step in _steps(_state(backend.pre_tokenizer), "pretokenizers")]
    state: dict[str, Any] = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    state["normalizer"] = {"type": "Sequence", "normalizers": steps}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pre_steps}
    parts = tokenizer_class.from_str(json.dumps(state))
    encoder = tokenizer_class(backend.model)
    if steps:
        encoder.normalizer = parts.normalizer
    if pre_steps:
        encoder.pre_tokenizer = parts.pre_tokenizer
    encoder.add_tokens([token for _, token in sorted(backend.get_added_tokens_decoder().items())])
    encoder.encode_special_tokens = True
    return encoder


def _without_prefix(step: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {"Metaspace": {"prepend_scheme": "never"}, "ByteLevel": {"add_prefix_space": False}}
    return {**step, **own.get(step["type"], {})}
