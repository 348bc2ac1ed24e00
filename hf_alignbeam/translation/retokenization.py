"""How a target's tokenizer would write what an anchor says: which of its tokens come next, and which texts are ruled out.

Knows two vocabularies, byte strings and the tokens of the word that is being written. Knows no probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_alignbeam.tokenization.vocabulary import Vocabulary
from hf_alignbeam.utils.method_cache import cached_method

#: How many of the tokens that could come next `may_grow` tries, spread evenly over all of them.
N_TRIED = 512

#: Characters that are tried after a text to see how its tokens may change when it goes on; one digit stands for all.
PROBES = [bytes([byte]) for byte in b" .,'-0abcdefghijklmnopqrstuvwxyz"]


@dataclass(frozen=True)
class FirstTokens:
    """How a text that may go on in any way begins in the target's tokens.

    Attributes:
        tokens: The tokens it may begin with, that of the text as it stands first.
        share: Of the ways to go on that were tried, the share after which the tokens written before still stand.
    """

    tokens: tuple[int, ...]
    share: float


class Retokenizer:
    """Tells, for texts of the anchor's, the target's next token.

    Args:
        anchor: The anchor's vocabulary.
        target: The target's.
    """

    def __init__(self, anchor: Vocabulary, target: Vocabulary):
        self._anchor = anchor
        self._target = target

    @cached_method(maxsize=256)
    def inside(self, pending: bytes) -> Tensor:
        """The ids (M,) of the anchor's tokens that are longer than `pending` and begin with it."""
        return torch.tensor(self._anchor.starting_with(pending), dtype=torch.long)

    def goals(self, ids: Sequence[int], pending: bytes, target_only_prefix: bytes = b"", word: tuple[int, ...] = ()) -> list[int]:
        """Where tokens of the anchor's lead that begin with what the target has written.

        Args:
            ids: Some of `inside(pending)`.
            pending: Their first bytes, which the target has written.
            owed: Bytes that the target still has to write before them.
            word: The target's tokens since its last word began.

        Returns:
            The target's next token for each: -1 where it would have written the text with other tokens than those of
            `word`.
        """
        known = self._goals(pending, target_only_prefix, word)
        new = [i for i in ids if i not in known]
        if new:
            before = self._target.decode(word) + target_only_prefix
            written = self._target.encode_batch([before + (self._anchor.tokens[i] or b"")[len(pending) :] for i in new])
            goals = (self._after(word, tokens) for tokens in written)
            known.update(zip(new, (-1 if goal is None else goal for goal in goals), strict=True))
        return [known[i] for i in ids]

    @cached_method(maxsize=1024)
    def _goals(self, pending: bytes, target_only_prefix: bytes, word: tuple[int, ...]) -> dict[int, int]:
        """What `goals` has found, by the anchor's id."""
        return {}

    @cached_method(maxsize=65_536)
    def may_grow(self, path: tuple[int, ...], t: int, pending: bytes = b"", target_only_prefix: bytes = b"") -> bool:
        """Whether the anchor, having written `path`, can still be on its way to the longer target token `t`.

        It can where it would itself write the text of `t`, or of `t` and some more, with these tokens first: "d" cannot
        become " do" for an anchor that has a token "do", but it can become "de" on the way to "d|es|ert".
        """
        spelled = self._anchor.decode(path)
        rest = (pending + (self._target.tokens[t] or b"")[len(target_only_prefix) :]).removeprefix(spelled)
        grown = target_only_prefix + spelled[len(pending) :]
        token = self._target.tokens[t] or b""
        if len(token) <= len(grown) or not token.startswith(grown):
            return False
        within = [self._anchor.by_bytes[rest[:n]] for n in range(1, len(rest) + 1) if rest[:n] in self._anchor.by_bytes]
        beyond = self._anchor.starting_with(rest)
        nexts = within + beyond[:: 1 + len(beyond) // N_TRIED]
        return any(self._anchor.encode_batch([spelled + (self._anchor.tokens[i] or b"")]) == [(*path, i)] for i in nexts)

    @cached_method(maxsize=65_536)
    def next_token(self, rest: bytes, word: tuple[int, ...] = ()) -> int | None:
        """The target's next token where its text goes on with `rest` and ends there.

        Args:
            rest: The bytes that come next, at least one.
            word: The target's tokens since its last word began.

        Returns:
            The token; None where the target would have written the longer text with other tokens than those of `word`.
        """
        return self._after(word, self._target.encode(self._target.decode(word) + rest))

    @cached_method(maxsize=65_536)
    def first_tokens(
        self, path: tuple[int, ...], pending: bytes = b"", target_only_prefix: bytes = b"", word: tuple[int, ...] = ()
    ) -> FirstTokens:
        """The target's next tokens that hold no more than the text of a path, by what may come after it.

        A tokenizer may begin "des" with "d" and "desert" with "de": what comes later decides, so every character of
        `PROBES` that the anchor may write after these tokens is tried.

        Args:
            path: The anchor's tokens, from `pending` on.
            pending: The first bytes of theirs, which the target has written.
            owed: Bytes that the target still has to write before them.
            word: The target's tokens since its last word began.
        """
        said = self._anchor.decode(path)
        rest = target_only_prefix + said[len(pending) :]
        if word and self._begins_anew(word, rest):
            return self.first_tokens(path, pending, target_only_prefix)
        own = self._anchor.encode_batch([said + probe for probe in PROBES])
        probes = [probe for probe, ids in zip(PROBES, own, strict=True) if ids[: len(path)] == path]
        text = self._target.decode(word) + rest
        tried = [self._after(word, ids) for ids in self._target.encode_batch([text, *(text + probe for probe in probes)])]
        found = [t for t in tried if t is not None]
        short = (t for t in found if len(self._target.tokens[t] or b"") <= len(rest))
        return FirstTokens(tuple(dict.fromkeys(short)), len(found) / len(tried))

    @cached_method(maxsize=65_536)
    def _begins_anew(self, word: tuple[int, ...], rest: bytes) -> bool:
        """Whether `rest` begins another word, so that what comes after it leaves the tokens of `word` alone."""
        if not rest[:1].isspace():
            return False
        text = self._target.decode(word)
        return not text[-1:].isspace() and self._target.encode(text + rest) == (*word, *self._target.encode(rest))

    @staticmethod
    def _after(word: tuple[int, ...], ids: tuple[int, ...]) -> int | None:
        return ids[len(word)] if len(ids) > len(word) and ids[: len(word)] == word else None

    @cached_method(maxsize=65_536)
    def canonical(self, ends: tuple[int, ...], word: tuple[int, ...]) -> tuple[int, ...]:
        """Of some target tokens those that it would write after the tokens of `word`, whatever comes then."""
        if not word or not ends:
            return ends
        text = self._target.decode(word)
        written = self._target.encode_batch([text + (self._target.tokens[t] or b"") for t in ends])
        return tuple(t for t, ids in zip(ends, written, strict=True) if ids == (*word, t))
