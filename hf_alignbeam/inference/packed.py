"""The forwards of a small batch of short texts as one row: no padding is fed or cached.

Knows where the model has cached each slot of each row. Knows no text and no branches, as `engines`.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_alignbeam.inference.engines import KeyValueEngine, Scope


class PackedEngine(KeyValueEngine):
    """One batch of texts in one row of the model: only real tokens are fed and cached, and equal beginnings are cached once.

    Rows of different lengths, and rows with nothing new, cost nothing extra; copies of a row share its cache. In return a
    token is compared with the cached tokens of all rows, and the mask hides the others: for small batches of short texts.

    Args:
        model: A decoder for which `can_cache` holds, and whose tokens may have masks of their own.
        scope: Makes the context for its forwards.
    """

    def __init__(self, model: PreTrainedModel, scope: Scope = nullcontext):
        super().__init__(model, scope)
        self._packed = torch.empty(0, 0, dtype=torch.long)  # (B, T) where each slot of a row is cached; -1 at padding
        self._cached_positions = torch.empty(0, dtype=torch.long)  # (S,)

    @property
    def n_cached(self) -> int:
        """The number S of cached tokens."""
        return len(self._cached_positions)

    def prefill(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As `KeyValueEngine.prefill`."""
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
        visible = mask[:, None] & torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
        return self._feed_real(ids, positions, visible, mask, mask.sum(-1).cumsum(-1) - 1)

    def read(self, ids: Tensor, positions: Tensor, visible: Tensor, real: Tensor, n_chained: Sequence[int]) -> Tensor:
        """As `KeyValueEngine.read`."""
        return self._feed_real(ids, positions, visible, real, None)

    def feed(self, ids: Tensor, positions: Tensor, visible: Tensor, real: Tensor) -> None:
        """As `KeyValueEngine.feed`."""
        self._feed_real(ids, positions, visible, real, torch.zeros(0, dtype=torch.long))

    def select_rows(self, index: Tensor) -> None:
        """As `KeyValueEngine.select_rows`."""
        self._packed = self._packed[index]

    def keep(self, slots: Tensor) -> None:
        """As `KeyValueEngine.keep`."""
        packed = self._packed[:, slots]
        kept, where = packed.unique(return_inverse=True)
        n_padding = int(len(kept) > 0 and int(kept[0]) < 0)
        self._packed, self._cached_positions = where - n_padding, self._cached_positions[kept[n_padding:]]
        super().keep(kept[n_padding:])

    def _feed_real(self, ids: Tensor, positions: Tensor, visible: Tensor, real: Tensor, kept: Tensor | None) -> Tensor:
        """Feed the real ones of the last n tokens of all rows; return the logits (N, A) after each, or at these indices."""
        rows, columns = real.nonzero(as_tuple=True)  # (N,)
        n_before, n_real = self.n_cached, len(rows)
        new = torch.full(real.shape, -1)
        new[rows, columns] = torch.arange(n_before, n_before + n_real)
        self._packed = torch.cat([self._packed.reshape(len(real), -1), new], dim=-1)
        new_ids, new_positions = (part[:, -real.shape[1] :][rows, columns][None] for part in (ids, positions))
        self._cached_positions = torch.cat([self._cached_positions, new_positions[0]])
        where = self._packed[rows].masked_fill(~visible[rows, columns], -1)  # (N, T)
        seen = torch.zeros(n_real, n_before + n_real + 1, dtype=torch.bool).scatter_(1, where + 1, True)[:, 1:]
        masks = self._masks(seen[None], self._cached_positions[None], new_positions)
        return self._run(new_ids, masks, new_positions, torch.arange(n_real) if kept is None else kept)[0]
