"""Next-token log-probabilities of texts that grow: each text is fed from where it differs from the last one.

Knows ids and a model's cache. Knows no text and no verdict.
"""

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from hf_alignbeam.inference.branching_cache import Append, BranchingCache
from hf_alignbeam.inference.engines import Engine, KeyValueEngine, Scope


@dataclass
class _FedTexts:
    """The texts that a model was last fed.

    Attributes:
        cache: Its cache.
        heads: By row, the ids at the beginning that do not change.
        tails: By row, the ids after them.
        slots: By row, the cache slots of the tail.
    """

    cache: BranchingCache
    heads: list[list[int]]
    tails: list[list[int]]
    slots: list[list[int]]


class IncrementalScorer:
    """A model with a cache of the texts that it was last fed, one cache for each thread.

    Args:
        model: A decoder.
        engine: The engine class that runs it (`choose_engine`).
        scope: Makes the context for its forwards.
    """

    def __init__(self, model: PreTrainedModel, engine: type[Engine], scope: Scope = nullcontext):
        self._model = model
        self._engine = KeyValueEngine if issubclass(engine, KeyValueEngine) else engine  # not packed: these texts are long
        self._scope = scope
        self._threads = threading.local()

    def next_logp(self, texts: Sequence[Sequence[int]], n_heads: Sequence[int]) -> Tensor:
        """Return the next-token log-probabilities (B, A) after each text.

        Args:
            texts: B lists of ids.
            n_heads: For each, how many ids at its beginning will not change as it grows.
        """
        fed, self._threads.fed = getattr(self._threads, "fed", None), None  # after an error the cache is not used again
        parents = _parents(fed, texts)
        if fed is None or parents is None:
            fed = self._feed_heads(texts, n_heads)
        else:
            fed.cache.select_rows(parents)
            fed = _FedTexts(fed.cache, *([column[i] for i in parents] for column in (fed.heads, fed.tails, fed.slots)))
        logp = _feed_tails(fed, texts)
        self._threads.fed = fed
        return logp

    def _feed_heads(self, texts: Sequence[Sequence[int]], n_heads: Sequence[int]) -> _FedTexts:
        heads = [list(text[: min(n, len(text) - 1)]) for text, n in zip(texts, n_heads, strict=True)]
        return _FedTexts(
            BranchingCache(self._engine(self._model, self._scope), heads), heads, [[] for _ in texts], [[] for _ in texts]
        )


def _parents(fed: _FedTexts | None, texts: Sequence[Sequence[int]]) -> list[int] | None:
    """Return for each text the fed row that shares its head and the most of its tail; None where any text has no such row."""
    if fed is None:
        return None
    parents = []
    for text in texts:
        rows = [row for row, head in enumerate(fed.heads) if len(text) > len(head) and list(text[: len(head)]) == head]
        if not rows:
            return None
        parents.append(max(rows, key=lambda row: n_common(fed.tails[row], text[len(fed.heads[row]) :])))
    return parents


def _feed_tails(fed: _FedTexts, texts: Sequence[Sequence[int]]) -> Tensor:
    """Feed each row the part of its text that differs, and return the log-probabilities (B, A) after it."""
    tails = [list(text[len(head) :]) for text, head in zip(texts, fed.heads, strict=True)]
    n_kept = [min(n_common(old, new), len(new) - 1) for old, new in zip(fed.tails, tails, strict=True)]
    kept = [slots[:n] for slots, n in zip(fed.slots, n_kept, strict=True)]
    new_slots = fed.cache.drop_unused_slots({slot for slots in kept for slot in slots})
    kept = [[new_slots[slot] for slot in slots] for slots in kept]
    bodies = [tail[n:-1] for tail, n in zip(tails, n_kept, strict=True)]
    if any(bodies):
        first = fed.cache.n_slots
        fed.cache.feed([Append(body, slots) for body, slots in zip(bodies, kept, strict=True)])
        kept = [[*slots, *range(first, first + len(body))] for slots, body in zip(kept, bodies, strict=True)]
    last = fed.cache.n_slots
    after = fed.cache.append([Append(tail[-1:], slots) for tail, slots in zip(tails, kept, strict=True)])
    fed.tails, fed.slots = tails, [[*slots, last] for slots in kept]
    return after.logp


def n_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common beginning of two lists of ids."""
    return next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
