"""How the target tokenizes text of the anchor: which token comes next, and whether the tokens written so far agree with it.

Knows two vocabularies, byte strings and the target's tokens of the current word. Knows no probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_alignbeam.tokenization.vocabulary import Vocabulary
from hf_alignbeam.utils.method_cache import cached_method

#: At most this many of the anchor tokens that start with the rest of a text `can_become` tries, spread evenly over all of them.
N_TRIED = 512
#: Characters appended to a text to see how its first token depends on the next character; one digit stands for all.
PROBES = [bytes([byte]) for byte in b" .,'-0abcdefghijklmnopqrstuvwxyz"]


@dataclass(frozen=True)
class FirstTokens:
    """The target tokens with which an unfinished text may begin.

    Attributes:
        tokens: The tokens; the first one is that of the text as it is, where the tokens so far stay canonical for it.
        canonical_share: The share of the continuations tried for which the target's tokens so far stay canonical.
    """

    tokens: tuple[int, ...]
    canonical_share: float


class Retokenizer:
    """Finds the target's next token for text that the anchor writes.

    Throughout, `pending` is the text that the target has written and the anchor has not been fed, `target_only_prefix` the
    bytes that only the target still writes before the answer, and `word` the target's tokens since its last word began. A
    tokenization is canonical where it is the one that the target's tokenizer gives to its text.
    """

    def __init__(self, anchor: Vocabulary, target: Vocabulary):
        self._anchor = anchor
        self._target = target

    @cached_method(maxsize=4096)
    def completions(self, pending: bytes) -> Tensor:
        """Return the ids (M,) of the anchor's tokens that are longer than `pending` and begin with it."""
        return torch.tensor(self._anchor.endings(pending)[0], dtype=torch.long)

    def next_tokens(
        self, ids: Sequence[int], pending: bytes, target_only_prefix: bytes = b"", word: tuple[int, ...] = ()
    ) -> list[int]:
        """Return the target's next token for each of some `completions(pending)`.

        It is -1 where the tokens of `word` are not canonical for the completed text.
        """
        known = self._known_next_tokens(pending, target_only_prefix, word)
        new = [i for i in ids if i not in known]
        if new:
            before = self._target.decode(word) + target_only_prefix
            encoded = self._target.encode_batch([before + (self._anchor.tokens[i] or b"")[len(pending) :] for i in new])
            next_tokens = (self._after(word, tokens) for tokens in encoded)
            known.update(zip(new, (-1 if t is None else t for t in next_tokens), strict=True))
        return [known[i] for i in ids]

    @cached_method(maxsize=1024)
    def _known_next_tokens(self, pending: bytes, target_only_prefix: bytes, word: tuple[int, ...]) -> dict[int, int]:
        """The results of `next_tokens` so far, by anchor id."""
        return {}

    @cached_method(maxsize=65_536)
    def can_become(self, path: tuple[int, ...], t: int, pending: bytes = b"", target_only_prefix: bytes = b"") -> bool:
        """Whether the text of an anchor path can grow into the longer target token `t`.

        It can where the anchor's tokenizer splits some prefix or extension of that token's text into the path and one token
        more: "d" cannot become "do" for an anchor that has a token "do", but it can become "de" as the start of "d|es|ert".
        """
        text, token = self._anchor.decode(path), self._target.tokens[t] or b""
        written = target_only_prefix + text[len(pending) :]
        if len(token) <= len(written) or not token.startswith(written):
            return False
        rest = (pending + token[len(target_only_prefix) :]).removeprefix(text)
        within = [self._anchor.by_bytes[rest[:n]] for n in range(1, len(rest) + 1) if rest[:n] in self._anchor.by_bytes]
        beyond = self._anchor.endings(rest)[0]
        following = within + beyond[:: 1 + len(beyond) // N_TRIED]
        return any(self._anchor.encode_batch([text + (self._anchor.tokens[i] or b"")]) == [(*path, i)] for i in following)

    @cached_method(maxsize=65_536)
    def next_token(self, rest: bytes, word: tuple[int, ...] = ()) -> int | None:
        """Return the target's next token where its text continues with `rest`, a byte or more, and ends there.

        It is None where the tokens of `word` are not canonical for the longer text.
        """
        return self._after(word, self._target.encode(self._target.decode(word) + rest))

    @cached_method(maxsize=65_536)
    def first_tokens(
        self, path: tuple[int, ...], pending: bytes = b"", target_only_prefix: bytes = b"", word: tuple[int, ...] = ()
    ) -> FirstTokens:
        """Return the target's possible next tokens within the text of an anchor path, which begins with `pending`.

        A tokenizer may begin "des" with "d" and "desert" with "de": the continuation decides. So every character of
        `PROBES` that can follow the path in the anchor's own tokenization is tried.
        """
        anchor_text = self._anchor.decode(path)
        rest = target_only_prefix + anchor_text[len(pending) :]
        if word and self._starts_new_word(word, rest):
            return self.first_tokens(path, pending, target_only_prefix)
        encoded = self._anchor.encode_batch([anchor_text + probe for probe in PROBES])
        probes = [probe for probe, ids in zip(PROBES, encoded, strict=True) if ids[: len(path)] == path]
        text = self._target.decode(word) + rest
        tried = [self._after(word, ids) for ids in self._target.encode_batch([text, *(text + probe for probe in probes)])]
        canonical = [t for t in tried if t is not None]
        within = (t for t in canonical if len(self._target.tokens[t] or b"") <= len(rest))
        return FirstTokens(tuple(dict.fromkeys(within)), len(canonical) / len(tried))

    @cached_method(maxsize=65_536)
    def _starts_new_word(self, word: tuple[int, ...], rest: bytes) -> bool:
        """Whether `rest` starts another word, so that no continuation changes the tokens of `word`."""
        if not rest[:1].isspace():
            return False
        text = self._target.decode(word)
        return not text[-1:].isspace() and self._target.encode(text + rest) == (*word, *self._target.encode(rest))

    @staticmethod
    def _after(word: tuple[int, ...], ids: tuple[int, ...]) -> int | None:
        """The token after `word` in a tokenization; None where it begins otherwise or ends there."""
        return ids[len(word)] if len(ids) > len(word) and ids[: len(word)] == word else None

    @cached_method(maxsize=65_536)
    def canonical(self, tokens: tuple[int, ...], word: tuple[int, ...]) -> tuple[int, ...]:
        """Keep the target tokens that are canonical after the tokens of `word`."""
        if not word or not tokens:
            return tokens
        text = self._target.decode(word)
        encoded = self._target.encode_batch([text + (self._target.tokens[t] or b"") for t in tokens])
        return tuple(t for t, ids in zip(tokens, encoded, strict=True) if ids == (*word, t))
