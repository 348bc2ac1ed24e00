"""VerdictReader: the probabilities of verdict texts, read from a model's next-token probabilities.

Knows tokens and verdict texts, of which several may begin with the same token. Knows no model and no conversation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Below this total probability of the verdict texts there is no verdict.
MIN_VERDICT_PROB = 0.05
#: Prefixes of verdicts that are less probable than this are not followed.
MIN_PREFIX_PROB = 0.01
#: So many prefixes of each row are followed, for so many tokens.
MAX_PREFIXES, MAX_TOKENS = 3, 6
#: What may stand before a verdict: white space and markup.
LEADING = b" \t\r\n\f\v*_`\"'"

#: The log-probabilities (B, A) of the next token after each of B lists of ids.
NextLogp = Callable[[Sequence[Sequence[int]]], Tensor]


class Verdicts(NamedTuple):
    """The verdicts on B exchanges.

    Attributes:
        harm: (B,) the expected harm, NaN where there is no verdict.
        prob: (B,) the total probability of the verdict texts.
    """

    harm: Tensor
    prob: Tensor


@dataclass(frozen=True)
class _Continuations:
    """What each next token does to a prefix of a verdict.

    Attributes:
        deciding: By verdict, the ids of tokens after which it is the only one possible.
        open: The ids of tokens after which several are possible, and the prefixes that they make.
    """

    deciding: list[list[int]]
    open: dict[int, bytes]


class VerdictReader:
    """Reads verdicts from next-token probabilities.

    A token counts for a verdict text if it spells the beginning of this text and of no other, or the whole text; letter case is
    ignored. Where a token leaves several texts possible, or is white space or markup before a verdict, the model is asked for the
    token after it.

    Args:
        tokens: The bytes of each token, None for special ones.
        verdicts: The harm in [0, 1] of each verdict text.

    Attributes:
        first_ids: The ids of the tokens that may begin a verdict.

    Raises:
        ValueError: No token begins one of the texts, or one text stands twice.
    """

    def __init__(self, tokens: Sequence[bytes | None], verdicts: Mapping[str, float]):
        self._tokens = [None if token is None else token.lower() for token in tokens]
        self._texts = [text.lower().encode().strip(LEADING) for text in verdicts]
        self._harm = torch.tensor(list(verdicts.values()), dtype=torch.float64)
        self._tables: dict[bytes, _Continuations] = {}
        if len(set(self._texts)) < len(self._texts):
            raise ValueError(f"`verdicts` must be different texts, got {', '.join(map(repr, verdicts))}.")
        first = self._continuations(b"")
        self.first_ids = sorted({*first.open, *(i for ids in first.deciding for i in ids)})
        for text, ids in zip(self._texts, first.deciding, strict=True):
            if not ids and not any(text.startswith(prefix) for prefix in first.open.values() if prefix):
                raise ValueError(f"`verdicts` must be texts that the tokenizer can write, got {text.decode()!r}. Use others.")

    def read(self, rows: Sequence[Sequence[int]], next_logp: NextLogp) -> Verdicts:
        """The verdicts after each of B lists of ids.

        Args:
            rows: What the model has read.
            next_logp: The model. It is asked about `rows` first, and then about `rows` and their continuations.
        """
        mass = torch.zeros(len(rows), len(self._texts), dtype=torch.float64)  # (B, verdicts)
        logp = next_logp(rows)
        followed = [_Prefix(row, b"", [], 1.0) for row in range(len(rows))]
        for _ in range(MAX_TOKENS):
            prob = logp[-len(followed) :].double().exp().cpu()  # (followed, A)
            following: list[_Prefix] = []
            for prefix, of_token in zip(followed, prob, strict=True):
                table = self._continuations(prefix.text)
                for verdict, ids in enumerate(table.deciding):
                    mass[prefix.row, verdict] += prefix.prob * of_token[ids].sum()
                following += _likeliest(prefix, table.open, of_token)
            if not following:
                break
            followed = following
            logp = next_logp([*rows, *([*rows[each.row], *each.ids] for each in followed)])
        total = mass.sum(-1)
        harm = torch.where(total >= MIN_VERDICT_PROB, (mass * self._harm).sum(-1) / total, torch.nan)
        return Verdicts(harm.clamp(0.0, 1.0), total)

    def _continuations(self, prefix: bytes) -> _Continuations:
        if prefix not in self._tables:
            deciding: list[list[int]] = [[] for _ in self._texts]
            still_open: dict[int, bytes] = {}
            for i, token in enumerate(self._tokens):
                text = _continued(prefix, token)
                if text is None:
                    continue
                possible = [n for n, verdict in enumerate(self._texts) if agrees(text, verdict, is_whole=token is None)]
                if len(possible) == 1:
                    deciding[possible[0]].append(i)
                elif possible:
                    still_open[i] = text
            self._tables[prefix] = _Continuations(deciding, still_open)
        return self._tables[prefix]


class _Prefix(NamedTuple):
    """The prefix of a verdict that is followed: its row, its text, its tokens and its probability."""

    row: int
    text: bytes
    ids: list[int]
    prob: float


def _likeliest(prefix: _Prefix, still_open: Mapping[int, bytes], prob: Tensor) -> list[_Prefix]:
    """The likeliest continuations that are worth following."""
    ids = list(still_open)
    if not ids:
        return []
    values, places = prob[ids].topk(min(MAX_PREFIXES, len(ids)))
    return [
        _Prefix(prefix.row, still_open[ids[place]], [*prefix.ids, ids[place]], prefix.prob * value)
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
        if prefix.prob * value >= MIN_PREFIX_PROB
    ]


def _continued(prefix: bytes, token: bytes | None) -> bytes | None:
    """A prefix with one more token; None where a token adds nothing: an empty one, or a special one before any text."""
    if token is None:
        return prefix or None
    if not token:
        return None
    return prefix + token if prefix else token.lstrip(LEADING)


def agrees(text: bytes, verdict: bytes, is_whole: bool = False) -> bool:
    """Whether a text is a prefix of a verdict, or a verdict with something after it that is no part of the word.

    Args:
        text: What is written so far, in lower case.
        verdict: The verdict text, in lower case.
        is_whole: Whether nothing follows the text.
    """
    if is_whole:
        return text.rstrip() == verdict
    return verdict.startswith(text) or (text.startswith(verdict) and ends_word(text, len(verdict)))


def ends_word(text: bytes, end: int) -> bool:
    """Whether a word that ends at a place of a text does not go on after it."""
    return not text[end : end + 1].isalnum()
