"""Texts that a model reads again and again as they grow, each from where it last differed.

Knows ids and an anchor's cache. Knows no text and no verdict.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from hf_alignbeam.inference.branching_cache import Append, BranchingCache
from hf_alignbeam.inference.engines import KeyValueEngine, RecomputeEngine


@dataclass
class _Known:
    """What the model has read: its cache, and by row the ids of the head, those after it, and their slots."""

    cache: BranchingCache
    heads: list[list[int]]
    tails: list[list[int]]
    slots: list[list[int]]


class IncrementalScorer:
    """A model that remembers the texts it was last asked about, one set for each thread.

    Args:
        model: A decoder.
        engine: How it is run (`choose_engine`).
    """

    def __init__(self, model: PreTrainedModel, engine: type[KeyValueEngine] | type[RecomputeEngine]):
        self._model = model
        self._engine = engine
        self._threads = threading.local()

    def next_logp(self, texts: Sequence[Sequence[int]], n_heads: Sequence[int]) -> Tensor:
        """What follows each text.

        Args:
            texts: B lists of ids.
            n_heads: Of each, how many ids at its beginning will not change as it grows; fewer than it has.

        Returns:
            The log-probabilities (B, A).
        """
        known, self._threads.known = getattr(self._threads, "known", None), None  # an error leaves nothing to go on from
        parents = _parents(known, texts)
        if known is None or parents is None:
            known = self._begun(texts, n_heads)
        else:
            known.cache.select_rows(parents)
            known = _Known(known.cache, *([old[i] for i in parents] for old in (known.heads, known.tails, known.slots)))
        logp = _read_on(known, texts)
        self._threads.known = known
        return logp

    def _begun(self, texts: Sequence[Sequence[int]], n_heads: Sequence[int]) -> _Known:
        heads = [list(text[: min(n, len(text) - 1)]) for text, n in zip(texts, n_heads, strict=True)]
        return _Known(BranchingCache(self._engine(self._model), heads), heads, [[] for _ in texts], [[] for _ in texts])


def _parents(known: _Known | None, texts: Sequence[Sequence[int]]) -> list[int] | None:
    """For each text the known row that it has most in common with, at least a whole head; None where one has none."""
    if known is None:
        return None
    parents = []
    for text in texts:
        fitting = [row for row, head in enumerate(known.heads) if len(text) > len(head) and list(text[: len(head)]) == head]
        if not fitting:
            return None
        parents.append(max(fitting, key=lambda row: n_common(known.tails[row], text[len(known.heads[row]) :])))
    return parents


def _read_on(known: _Known, texts: Sequence[Sequence[int]]) -> Tensor:
    """Feed each row what it has not read of its text."""
    tails = [list(text[len(head) :]) for text, head in zip(texts, known.heads, strict=True)]
    n_kept = [min(n_common(old, new), len(new) - 1) for old, new in zip(known.tails, tails, strict=True)]
    kept = [slots[:n] for slots, n in zip(known.slots, n_kept, strict=True)]
    number = known.cache.drop_unused_slots({slot for slots in kept for slot in slots})
    kept = [[number[slot] for slot in slots] for slots in kept]
    bodies = [tail[n:-1] for tail, n in zip(tails, n_kept, strict=True)]
    if any(bodies):
        first = known.cache.n_slots
        known.cache.feed([Append(body, slots) for body, slots in zip(bodies, kept, strict=True)])
        kept = [[*slots, *range(first, first + len(body))] for slots, body in zip(kept, bodies, strict=True)]
    last = known.cache.n_slots
    logp = known.cache.append([Append(tail[-1:], slots) for tail, slots in zip(tails, kept, strict=True)])
    known.tails, known.slots = tails, [[*slots, last] for slots in kept]
    return logp[:, -1]


def n_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginning."""
    return next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
