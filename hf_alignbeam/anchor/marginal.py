"""The sum of the covers of every row: the anchor's next-token distribution over the target's vocabulary, in a few tensors.

Knows covers, their tables and the target's own distribution. Knows neither how covers are found nor how the anchor is fed.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from hf_alignbeam.anchor.cover import Cover
from hf_alignbeam.anchor.covering import TINY, CoverDistribution
from hf_alignbeam.anchor.state import RowState
from hf_alignbeam.translation.translator import AS_IS_WEIGHT, Table, Translation

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
    return result.normalized()


def _unnormalized(distributions: Sequence[CoverDistribution], rows: Sequence[RowState], target_prob: Tensor) -> Translation:
    """Add up tracked tokens one by one, and all other tokens by completion or through the covers' tables."""
    width, flat_prob = target_prob.shape[-1], target_prob.reshape(-1)
    by_table: dict[int, list[_TabledCover]] = defaultdict(list)
    certain: dict[int, float] = defaultdict(float)  # the mass of single target tokens, those of all rows one after the other
    divided: list[tuple[list[int], float]] = []  # the target tokens among which a mass is divided, numbered as those
    for n, (distribution, row) in enumerate(zip(distributions, rows, strict=True)):
        for cover in distribution.covers:
            tracked = distribution.tracked[cover.path]
            for i, mass in tracked.items():
                for tokens, share in distribution.shares((i,), cover, mass, row.nodes):
                    if len(tokens) == 1:
                        certain[n * width + tokens[0]] += share
                    elif tokens:
                        divided.append(([n * width + t for t in tokens], share))
            if cover.table is not None:
                by_table[id(cover.table)].append((n, cover, list(tracked)))
            for i, t in cover.next_tokens.items():
                if t >= 0 and i not in tracked:
                    certain[n * width + t] += cover.likeliest[i]
    result = Translation(torch.zeros_like(target_prob), target_prob.new_zeros(len(target_prob)))
    for group in by_table.values():
        _add_through_table(result, group, target_prob)
    flat = result.prob.view(-1)
    flat.index_add_(0, torch.tensor(list(certain), dtype=torch.long, device=flat.device), flat.new_tensor([*certain.values()]))
    _add_divided(flat, divided, flat_prob)
    return result


def _add_through_table(result: Translation, group: Sequence[_TabledCover], target_prob: Tensor) -> None:
    """Add the tokens that are not tracked of covers with one table."""
    covers, device = [cover for _, cover, _ in group], target_prob.device
    rest = torch.stack([cover.node.prob for cover in covers])  # (M, A)
    tracked = [(m, i) for m, (_, _, ids) in enumerate(group) for i in ids]
    if tracked:
        rest[torch.tensor(tracked, device=rest.device).unbind(-1)] = 0.0
    rows = torch.tensor([n for n, _, _ in group], device=device)
    part = cast(Table, covers[0].table).to(device).apply_(rest.to(device), target_prob[rows])
    weights = part.lost.new_tensor([cover.weight for cover in covers])
    result.prob.index_add_(0, rows, part.prob.mul_(weights[:, None]))
    result.lost.index_add_(0, rows, part.lost * weights)


def _add_divided(flat: Tensor, divided: Sequence[tuple[list[int], float]], target_prob: Tensor) -> None:
    """Divide each mass among target tokens by the target's own distributions (N * V,), with a bonus for the first one.

    `flat` (N * V,) holds the masses so far. Each element of `divided` holds indices in it, and their mass.
    """
    device, dtype = flat.device, flat.dtype
    ids = torch.tensor([t for tokens, _ in divided for t in tokens], dtype=torch.long, device=device)
    group = torch.tensor([g for g, (tokens, _) in enumerate(divided) for _ in tokens], dtype=torch.long, device=device)
    first = torch.tensor([k == 0 for tokens, _ in divided for k in range(len(tokens))], dtype=dtype, device=device)
    masses = torch.tensor([mass for _, mass in divided], dtype=dtype, device=device)
    weights = target_prob[ids]
    weights = weights + first * (AS_IS_WEIGHT * _group_sums(weights, group, len(divided))[group] + TINY)
    flat.index_add_(0, ids, weights * (masses / _group_sums(weights, group, len(divided)))[group])


def _group_sums(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """(G,) the sum of the values (M,) of each group."""
    return values.new_zeros(n_groups).index_add_(0, group, values)
