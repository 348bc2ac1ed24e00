"""One batch of anchor contexts in which rows can grow, branch and abandon tokens, each fed only what it has not seen.

Knows ids, positions and which tokens a row still sees. Knows no text, no target and no translation: it is asked for the
next-token distribution after a path of tokens. How the model is run is `engines.py`'s business.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_alignbeam.inference.engines import Engine, KeyValueEngine, RecomputeEngine, Scope, can_cache

#: How far a cached reading may be from one of the whole text, in total variation: by rounding in 32 bits, and in fewer.
ROUNDING, COARSE_ROUNDING = 1e-3, 0.1


@dataclass(frozen=True)
class Append:
    """Tokens to put after one row's earlier ones.

    Attributes:
        ids: The new tokens, in order; empty for a row that has nothing to add.
        seen: The slots of the tokens between the prompt and them.
    """

    ids: Sequence[int]
    seen: Sequence[int]


@dataclass(frozen=True)
class Leaf:
    """One token to put after a path of one row's tokens.

    Attributes:
        id: The token.
        seen: The slots of the tokens between the prompt and it.
    """

    id: int
    seen: Sequence[int]


class BranchingCache:
    """One batch of anchor contexts.

    Every token fed occupies one slot for all rows. A row sees its prompt and the slots that an `Append` or a `Leaf` names;
    everything else (padding, abandoned branches, other rows' tokens) is hidden from it, so rows of different lengths share
    one cache without being cropped.

    Args:
        engine: The anchor, ready to be fed.
        prompts: Each row's prompt ids, none of them empty. Equal ones are read once.
    """

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]]):
        self._engine = engine
        different = list(dict.fromkeys(map(tuple, prompts)))
        width = max(map(len, different))
        self._ids = torch.zeros(len(different), width, dtype=torch.long)  # (B, T)
        self._prompt = torch.zeros(len(different), width, dtype=torch.bool)  # (B, T)
        for row, prompt in enumerate(different):
            self._ids[row, width - len(prompt) :] = torch.tensor(prompt)
            self._prompt[row, width - len(prompt) :] = True
        self._positions = (self._prompt.long().cumsum(-1) - 1).clamp_min(0)  # (B, T)
        self._n_prompt = self._prompt.sum(-1).tolist()
        self._check_room(width)
        self.prompt_logp = _logp(self._engine.prefill(self._ids, self._prompt))  # (B, A)
        if len(different) < len(prompts):
            places = [different.index(tuple(prompt)) for prompt in prompts]
            self.select_rows(places)
            self.prompt_logp = self.prompt_logp[places]

    @property
    def n_slots(self) -> int:
        """How many slots there are."""
        return self._ids.shape[-1]

    @property
    def n_forwards(self) -> int:
        """How many forwards of the anchor there were."""
        return self._engine.n_forwards

    @property
    def n_tokens(self) -> int:
        """How many tokens they were fed, padding included."""
        return self._engine.n_tokens

    @property
    def n_leaves(self) -> int:
        """How many leaves of a row one forward is worth feeding."""
        return self._engine.n_leaves

    def context(self, row: int, seen: Sequence[int]) -> list[int]:
        """The ids that a row reads: its prompt and the tokens in these slots."""
        return [*self._ids[row][self._prompt[row]].tolist(), *self._ids[row, list(seen)].tolist()]

    def append(self, rows: Sequence[Append]) -> Tensor:
        """Feed every row its new tokens in one forward.

        Args:
            rows: One `Append` a row.

        Returns:
            The log-probabilities (B, n, A) of what follows each new token; the token at index i of any row takes slot
            `n_slots + i`, counted before the call. Rows with fewer tokens than n hold nothing of use past theirs.
        """
        visible = self._chain(rows)
        return _logp(self._engine.read(self._ids, self._positions, visible, [len(row.ids) for row in rows], chained=True))

    def feed(self, rows: Sequence[Append]) -> None:
        """The same where nobody asks what follows."""
        visible = self._chain(rows)
        self._engine.feed(self._ids, self._positions, visible)

    def branch(self, rows: Sequence[Sequence[Leaf]]) -> Tensor:
        """Feed every row any number of leaves, which do not see each other, in one forward.

        Args:
            rows: Each row's leaves; at most one a row where `n_leaves` is 1.

        Returns:
            The log-probabilities (B, n, A) of what follows each leaf, in slots as after `append`.
        """
        n_new = max(map(len, rows))
        filled = [[*(leaf.id for leaf in row), *[0] * (n_new - len(row))] for row in rows]
        seen = [[*(leaf.seen for leaf in row), *[()] * (n_new - len(row))] for row in rows]
        depths = [[0] * len(row) + [-1] * (n_new - len(row)) for row in rows]
        visible = self._lay(filled, seen, depths, torch.eye(n_new, dtype=torch.bool))
        return _logp(self._engine.read(self._ids, self._positions, visible, [len(row) for row in rows], chained=False))

    def n_unused(self, used: Iterable[int]) -> int:
        """How many slots hold no prompt and are used by nobody."""
        return int((~self._live(used)).sum())

    def drop_unused_slots(self, used: Iterable[int]) -> dict[int, int]:
        """Drop the slots that hold no prompt and are not among those in `used`.

        Returns:
            The new number of each slot in `used`.
        """
        used = list(used)
        live = self._live(used)
        number = live.cumsum(0) - 1
        kept = live.nonzero()[:, 0]
        self._engine.keep(kept)
        self._ids, self._prompt, self._positions = self._ids[:, kept], self._prompt[:, kept], self._positions[:, kept]
        return {slot: int(number[slot]) for slot in used}

    def select_rows(self, parents: Sequence[int]) -> None:
        """Make row i go on from what row `parents[i]` was fed; rows may be dropped and doubled."""
        index = torch.LongTensor(parents)
        self._engine.select_rows(index)
        self._ids, self._prompt, self._positions = self._ids[index], self._prompt[index], self._positions[index]
        self._n_prompt = [self._n_prompt[parent] for parent in parents]

    def _chain(self, rows: Sequence[Append]) -> Tensor:
        n_new = max(len(row.ids) for row in rows)
        filled = [[*row.ids, *[0] * (n_new - len(row.ids))] for row in rows]
        depths = [[min(n, len(row.ids) - 1) for n in range(n_new)] for row in rows]
        return self._lay(filled, [[row.seen] * n_new for row in rows], depths, torch.ones(n_new, n_new, dtype=torch.bool).tril())

    def _lay(
        self,
        ids: Sequence[Sequence[int]],
        seen: Sequence[Sequence[Sequence[int]]],
        depths: Sequence[Sequence[int]],
        among: Tensor,
    ) -> Tensor:
        """Give (B, n) tokens their slots.

        Returns:
            What each of them sees (B, n, T): its row's prompt, the slots in `seen`, and of the new ones what `among` (n, n) says.
        """
        n_rows, n_new = len(ids), len(among)
        positions = torch.tensor(
            [
                [n_prompt + len(slots) + depth for slots, depth in zip(row, deep, strict=True)]
                for n_prompt, row, deep in zip(self._n_prompt, seen, depths, strict=True)
            ]
        )
        self._check_room(int(positions.max()) + 1)
        visible = torch.cat([self._prompt[:, None].expand(-1, n_new, -1), among.expand(n_rows, -1, -1)], dim=-1)  # (B, n, T + n)
        for i, row in enumerate(seen):
            for n, slots in enumerate(row):
                visible[i, n, list(slots)] = True
        self._ids = torch.cat([self._ids, torch.tensor(ids)], dim=-1)
        self._positions = torch.cat([self._positions, positions], dim=-1)
        self._prompt = torch.cat([self._prompt, torch.zeros(n_rows, n_new, dtype=torch.bool)], dim=-1)
        return visible

    def _live(self, used: Iterable[int]) -> Tensor:
        live = self._prompt.any(0)  # (T,)
        live[list(used)] = True
        return live

    def _check_room(self, n_positions: int) -> None:
        limit = self._engine.n_positions
        if limit is not None and n_positions > limit:
            raise ValueError(
                f"The context of an anchor or a judge must hold the conversation and the answer, but takes {limit} tokens and "
                f"needs {n_positions}. Use a model with a longer one, a smaller `n_steps`, or shorter prompts."
            )


def _logp(logits: Tensor) -> Tensor:
    """The log-probabilities (..., A) that logits stand for."""
    logp = logits.float().log_softmax(-1)
    if torch.isnan(logp[..., 0]).any():  # one that is not a number spoils the sum, and so every other
        raise ValueError(
            "The anchor's logits must be numbers, got NaN or infinity. Check the anchor's weights and dtype (float16 "
            "overflows in some models: load it in bfloat16 or float32)."
        )
    return logp


def choose_engine(
    anchor: PreTrainedModel, tokens: Sequence[bytes | None], scope: Scope = nullcontext
) -> type[KeyValueEngine] | type[RecomputeEngine]:
    """How an anchor is to be run: from a cache where that is seen to give what reading the whole text gives.

    Args:
        anchor: A decoder.
        tokens: The bytes of its tokens, by id.
        scope: A context for its forwards.

    Returns:
        The engine to make for each batch.
    """
    ordinary = [i for i, token in enumerate(tokens) if token]
    ids = [ordinary[len(ordinary) * n // 6] for n in range(1, 6)]
    cached = can_cache(anchor) and _is_exact(anchor, ids, scope)
    return KeyValueEngine if cached else RecomputeEngine


def _is_exact(anchor: PreTrainedModel, ids: Sequence[int], scope: Scope) -> bool:
    """Whether ragged rows that branch, sweep and swap in the cache read as from scratch."""
    prompts = [ids[:3], [ids[3], ids[4], ids[0], ids[2], ids[1]]]
    engine = KeyValueEngine(anchor, scope)
    n_leaves = min(engine.n_leaves, 2)
    anew = _probe(BranchingCache(RecomputeEngine(anchor, scope), prompts), ids, n_leaves)
    try:
        cached = _probe(BranchingCache(engine, prompts), ids, n_leaves)
    except Exception:  # whatever a model of an unknown kind raises here: it is read anew
        return False
    rounding = ROUNDING if torch.finfo(anchor.dtype).bits >= 32 else COARSE_ROUNDING
    return bool((anew - cached).abs().sum(-1).max() / 2 <= rounding)


def _probe(cache: BranchingCache, ids: Sequence[int], n_leaves: int) -> Tensor:
    """The distributions (n, A) after every kind of step that a cache takes."""
    a, b, c, d, e = ids
    first = cache.n_slots
    found = [cache.append([Append([d, e], []), Append([b], [])])[[0, 0, 1], [0, 1, 0]]]
    leaves = [Leaf(a, [first]), Leaf(c, [first, first + 1])][:n_leaves]
    found.append(cache.branch([leaves, [Leaf(e, [])]])[[0, 0, 1], [0, n_leaves - 1, 0]])
    number = cache.drop_unused_slots([first, first + 2])
    cache.select_rows([1, 0])
    last = [Append([c], [number[first]]), Append([d, b], [number[first], number[first + 2]])]
    found.append(cache.append(last)[[0, 1], [0, 1]])
    return torch.cat(found).exp()
