"""The sum of the covers of every row: the anchor's next-token distribution over the target's vocabulary, in a few tensors.

Knows covers, their tables and the target's own distribution. Knows neither how covers are found nor how the anchor is fed.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from hf_alignbeam.anchor.cover import Cover
from hf_alignbeam.anchor.covering import CoverDistribution
from hf_alignbeam.anchor.state import RowState
from hf_alignbeam.translation.translator import Table, Translation

#: The number of a row, a cover of it that has a table, and the tokens of the cover that are tracked one by one.
_TabledCover = tuple[int, Cover, Sequence[int]]


def marginal(distributions: Sequence[CoverDistribution], rows: Sequence[RowState], target_prob: Tensor) -> Translation:
    """Sum each row's covers into a distribution over the target's vocabulary.

    Args:
        distributions: One per row, all of one translator.
        rows: The same rows, with the points that were looked ahead to.
        target_prob: (N, V) the target's own distributions.

    Returns:
        `prob` (N, V) and `lost` (N,), normalized. A row that keeps next to no mass counts every tokenization instead.
    """
    result = _unnormalized(distributions, rows, target_prob)
    totals = (result.prob.sum(-1) + result.lost).tolist()
    for n, (distribution, total) in enumerate(zip(distributions, totals, strict=True)):
        chosen = distribution.or_unconditional(total)
        if chosen is not distribution:
            again = _unnormalized([chosen], [rows[n]], target_prob[n : n + 1])
            result.prob[n], result.lost[n] = again.prob[0], again.lost[0]
    return result.normalize_()


def _unnormalized(distributions: Sequence[CoverDistribution], rows: Sequence[RowState], target_prob: Tensor) -> Translation:
    """Add up tracked tokens one by one, and all other tokens by completion or through the covers' tables."""
    width = target_prob.shape[-1]
    by_table: dict[int, list[_TabledCover]] = defaultdict(list)
    certain: dict[int, float] = defaultdict(float)  # the mass of single target tokens, those of all rows one after the other
    for n, (distribution, row) in enumerate(zip(distributions, rows, strict=True)):
        for cover in distribution.covers:
            tracked = distribution.tracked[cover.path]
            for i, mass in tracked.items():
                for t, share in distribution.shares((i,), cover, mass, row.nodes):
                    certain[n * width + t] += share
            if cover.table is not None:
                by_table[id(cover.table)].append((n, cover, list(tracked)))
            for i, t in cover.next_tokens.items():
                if t >= 0 and i not in tracked:
                    certain[n * width + t] += cover.likeliest[i]
    parts = [_through_table(group, target_prob) for group in by_table.values()]
    result = parts.pop() if parts else Translation(torch.zeros_like(target_prob), target_prob.new_zeros(len(target_prob)))
    for part in parts:
        result = Translation(result.prob.add_(part.prob), result.lost.add_(part.lost))
    flat = result.prob.view(-1)
    flat.index_add_(0, torch.tensor(list(certain), dtype=torch.long, device=flat.device), flat.new_tensor([*certain.values()]))
    return result


def _through_table(group: Sequence[_TabledCover], target_prob: Tensor) -> Translation:
    """The tokens that are not tracked of covers with one table; nothing in the rows without such a cover."""
    rows, covers = [n for n, _, _ in group], [cover for _, cover, _ in group]
    rest = torch.stack([cover.node.prob for cover in covers])  # (M, A)
    if tracked := [(m, i) for m, (_, _, ids) in enumerate(group) for i in ids]:
        rest[torch.tensor(tracked, device=rest.device).unbind(-1)] = 0.0
    is_whole = rows == list(range(len(target_prob)))
    own = target_prob if is_whole else target_prob[rows]
    part = cast(Table, covers[0].table).to(own.device).apply_(rest.to(own.device), own)
    weights = own.new_tensor([cover.weight for cover in covers])
    prob, lost, index = part.prob.mul_(weights[:, None]), part.lost.mul_(weights), torch.tensor(rows, device=own.device)
    if is_whole:
        return Translation(prob, lost)
    return Translation(*(part.new_zeros(len(target_prob), *part.shape[1:]).index_add_(0, index, part) for part in (prob, lost)))
