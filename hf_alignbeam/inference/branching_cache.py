"""One batch of contexts whose rows can grow, branch and abandon tokens, with each token fed once.

Knows ids, positions, and which tokens a row still sees. Knows no text, no target and no translation: it returns next-token
distributions after paths of tokens. `engines` runs the model.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_alignbeam.inference.engines import PACKED, Engine, KeyValueEngine, RecomputeEngine, Scope, can_cache

#: How far a distribution from the cache may be from the recomputed one, in total variation: in 32 bits, and in fewer.
ROUNDING, COARSE_ROUNDING = 1e-3, 0.1


class Append(NamedTuple):
    """New tokens of one row, in order, and the slots of the tokens between the prompt and them."""

    ids: Sequence[int]
    slots: Sequence[int]


class Leaf(NamedTuple):
    """One new token after a path of one row's tokens, and the slots of the tokens between the prompt and it."""

    id: int
    slots: Sequence[int]


class NextTokens:
    """The next-token distributions after N new tokens, row by row, from their `logits` (N, A).

    Each row has `n_new` new tokens. `first` holds for each row the index of its first one, and N at the end.
    """

    def __init__(self, logits: Tensor, n_new: Sequence[int]):
        self._logits = logits
        self.first = [0, *accumulate(n_new)]

    @cached_property
    def logp(self) -> Tensor:
        """The log-probabilities (N, A). Raises ValueError where the logits give no distribution."""
        return _checked(self._logits.float().log_softmax(-1))

    @cached_property
    def prob(self) -> Tensor:
        """The probabilities (N, A). Raises ValueError where the logits give no distribution."""
        return _checked(self._logits.softmax(-1, dtype=torch.float32))


class BranchingCache:
    """One batch of contexts.

    Every token fed takes one slot in all rows. A row sees its prompt and the slots that an `Append` or a `Leaf` names. All
    other slots (padding, abandoned branches, other rows' tokens) are hidden from it, so rows of different lengths share one
    cache without being cropped.

    Args:
        engine: The model, ready to be fed.
        prompts: The prompt ids of each row, none empty. Equal prompts are fed once.
    """

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]]):
        self.engine = engine
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        width = max(map(len, distinct))
        self._ids = torch.zeros(len(distinct), width, dtype=torch.long)  # (B, T)
        self._prompt = torch.zeros(len(distinct), width, dtype=torch.bool)  # (B, T)
        for row, prompt in enumerate(distinct):
            self._ids[row, width - len(prompt) :] = torch.tensor(prompt)
            self._prompt[row, width - len(prompt) :] = True
        self._positions = (self._prompt.long().cumsum(-1) - 1).clamp_min(0)  # (B, T)
        self._n_prompt = self._prompt.sum(-1).tolist()
        self._check_room(width)
        logits = self.engine.prefill(self._ids, self._prompt)
        if len(distinct) < len(prompts):
            parents = [distinct.index(tuple(prompt)) for prompt in prompts]
            self.select_rows(parents)
            logits = logits[parents]
        self.after_prompt = NextTokens(logits, [1] * len(prompts))

    @property
    def n_slots(self) -> int:
        """The number of slots."""
        return self._ids.shape[-1]

    def append(self, rows: Sequence[Append], leaves: Sequence[Sequence[Leaf]] | None = None) -> NextTokens:
        """Feed every row its new tokens in one forward, and the leaves of each row, which may come after them.

        The token at index i takes slot `n_slots + i`, counted before the call, and the first leaf the one after the longest
        row's. No leaf sees another, and there are none where `n_leaves` is 1.
        """
        chains = self._chains(rows)
        width = max(map(len, chains))
        more = leaves or [[]] * len(rows)
        grid = [[*chain, *[None] * (width - len(chain)), *after] for chain, after in zip(chains, more, strict=True)]
        return self._read(grid, [len(chain) for chain in chains])

    def feed(self, rows: Sequence[Append]) -> None:
        """Feed every row its new tokens as `append` does, without their log-probabilities."""
        self.engine.feed(*self._allocate(self._chains(rows)))

    def branch(self, rows: Sequence[Sequence[Leaf]]) -> NextTokens:
        """Feed every row any number of leaves in one forward, at most one where `n_leaves` is 1; they do not see each other."""
        return self._read(rows, [0] * len(rows))

    def drop_unused_slots(self, used: Iterable[int]) -> dict[int, int]:
        """Drop the slots that hold no prompt and are not in `used`; return the new number of each slot in `used`."""
        used = list(used)
        is_kept = self._prompt.any(0)  # (T,)
        is_kept[used] = True
        number = is_kept.cumsum(0) - 1
        kept = is_kept.nonzero()[:, 0]
        self.engine.keep(kept)
        self._ids, self._prompt, self._positions = self._ids[:, kept], self._prompt[:, kept], self._positions[:, kept]
        return {slot: int(number[slot]) for slot in used}

    def select_rows(self, parents: Sequence[int]) -> None:
        """Continue row i from row `parents[i]`; rows may be dropped or repeated."""
        index = torch.LongTensor(parents)
        self.engine.select_rows(index)
        self._ids, self._prompt, self._positions = self._ids[index], self._prompt[index], self._positions[index]
        self._n_prompt = [self._n_prompt[parent] for parent in parents]

    def _read(self, grid: Sequence[Sequence[Leaf | None]], n_chained: Sequence[int]) -> NextTokens:
        logits = self.engine.read(*self._allocate(grid), n_chained)
        return NextTokens(logits, [sum(leaf is not None for leaf in leaves) for leaves in grid])

    def _chains(self, rows: Sequence[Append]) -> list[list[Leaf]]:
        """Each row's new tokens, which see those before them."""
        first = self.n_slots
        return [[Leaf(i, [*row.slots, *range(first, first + n)]) for n, i in enumerate(row.ids)] for row in rows]

    def _allocate(self, grid: Sequence[Sequence[Leaf | None]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Allocate slots for the new tokens of each row; None is padding. Return what `Engine.read` takes but `n_chained`."""
        n_new, n_before = max(map(len, grid)), self.n_slots
        ids, real = [[0] * n_new for _ in grid], [[False] * n_new for _ in grid]
        positions, seen = [[n] * n_new for n in self._n_prompt], []
        for row, leaves in enumerate(grid):
            for n, leaf in enumerate(leaves):
                if leaf is not None:
                    ids[row][n], real[row][n] = leaf.id, True
                    positions[row][n] += len(leaf.slots)
                    seen += [(row * n_new + n) * (n_before + n_new) + slot for slot in (*leaf.slots, n_before + n)]
        self._check_room(1 + max(map(max, positions)))
        visible = torch.nn.functional.pad(self._prompt[:, None].expand(-1, n_new, -1), (0, n_new))  # (B, n, T)
        visible.view(-1)[torch.tensor(seen, dtype=torch.long)] = True
        self._ids = torch.cat([self._ids, torch.tensor(ids, dtype=torch.long)], dim=-1)
        self._positions = torch.cat([self._positions, torch.tensor(positions, dtype=torch.long)], dim=-1)
        self._prompt = torch.nn.functional.pad(self._prompt, (0, n_new))
        return self._ids, self._positions, visible, torch.tensor(real, dtype=torch.bool)

    def _check_room(self, n_positions: int) -> None:
        limit = self.engine.n_positions
        if limit is not None and n_positions > limit:
            raise ValueError(
                f"The context of an anchor or a judge must hold the conversation and the answer, but {self.engine.name} takes "
                f"{limit} tokens, not {n_positions}. Use one with a longer context, a smaller `n_steps`, or shorter prompts."
            )


def _checked(normalized: Tensor) -> Tensor:
    """Return what a softmax gave (N, A), or raise ValueError where a row is no distribution: NaN stands in all of it then."""
    if normalized[:, 0].isnan().any():
        raise ValueError(
            "The logits of an anchor or a judge must be numbers, got NaN or infinity. Check the model's weights and dtype "
            "(float16 overflows in some models: load it in bfloat16 or float32)."
        )
    return normalized


def choose_engine(model: PreTrainedModel, tokens: Sequence[bytes | None], scope: Scope = nullcontext) -> type[Engine]:
    """Choose how to run a model: from a cache where a trial gives the same distributions as recomputing the whole text.

    Args:
        model: A decoder.
        tokens: The bytes of its tokens, by id.
        scope: Makes the context for its forwards.

    Returns:
        The engine class, to be built for each batch; in place of a packed one `KeyValueEngine` gives the same.
    """
    ordinary = [i for i, token in enumerate(tokens) if token]
    ids = [ordinary[len(ordinary) * n // 6] for n in range(1, 6)]
    if not can_cache(model):
        return RecomputeEngine
    recomputed = _recomputed(model, ids, scope)
    if not _is_exact(model, KeyValueEngine, ids, scope, recomputed):
        return RecomputeEngine
    faster = PACKED if KeyValueEngine(model).n_leaves > 1 else []
    return next((kind for kind in faster if _is_exact(model, kind, ids, scope, recomputed)), KeyValueEngine)


def _recomputed(model: PreTrainedModel, ids: Sequence[int], scope: Scope) -> Tensor:
    """The distributions (9, A) that `_trial` must give, from one forward of whole texts."""
    a, b, c, d, e = ids
    first, second = [a, b, c], [d, e, a, c, b]
    rows = [[*first, d, e, c], [*first, d, a, d, b], [*second, b, c], [*second, e]]
    filled = [torch.tensor([*row, *[a] * (7 - len(row))]) for row in rows]  # what comes later changes nothing before
    logits = RecomputeEngine(model, scope).logits(filled, [7] * len(rows))
    ends = [(0, 4), (0, 5), (1, 5), (0, 6), (2, 6), (3, 6), (2, 7), (1, 6), (1, 7)]  # row and length of each text, in order
    return NextTokens(torch.stack([logits[row][n - 1] for row, n in ends]), [len(ends)]).prob


def _is_exact(model: PreTrainedModel, kind: type[Engine], ids: Sequence[int], scope: Scope, recomputed: Tensor) -> bool:
    """Whether ragged rows that branch, drop slots and swap in the cache give the recomputed distributions."""
    a, b, c, d, e = ids
    try:
        cached = _trial(BranchingCache(kind(model, scope), [[a, b, c], [d, e, a, c, b]]), ids)
    except Exception:  # a model of an unknown kind may raise anything here, and is recomputed instead
        return False
    rounding = ROUNDING if torch.finfo(model.dtype).bits >= 32 else COARSE_ROUNDING
    return bool((recomputed - cached).abs().sum(-1).max() / 2 <= rounding)


def _trial(cache: BranchingCache, ids: Sequence[int]) -> Tensor:
    """Return the distributions (9, A) after every kind of step that a cache takes."""
    (a, b, c, d, e), first = ids, cache.n_slots
    chains = [Append([d, e], []), Append([b], [])]
    leaves = [[Leaf(a, [first]), Leaf(c, [first, first + 1])], [Leaf(e, [])]]
    if cache.engine.n_leaves > 1:
        prob = cache.append(chains, leaves).prob
    else:
        parts = [cache.append(chains), cache.branch([leaves[0][:1], leaves[1]]), cache.branch([leaves[0][1:], []])]
        prob = torch.cat([part.prob for part in parts])[[0, 1, 3, 5, 2, 4]]
    number = cache.drop_unused_slots([first, first + 2])
    cache.select_rows([1, 0])
    last = cache.append([Append([c], [number[first]]), Append([d, b], [number[first], number[first + 2]])])
    return torch.cat([prob, last.prob])
