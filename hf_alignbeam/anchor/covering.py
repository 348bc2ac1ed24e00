"""What the anchors of many rows say next, summed over every point they may be writing on from, in the target's vocabulary.

Knows readings and how they share out their mass. Knows no model and no text.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from hf_alignbeam.anchor.state import Cover, Reading
from hf_alignbeam.translation.translator import SETTLED_WEIGHT, Table, Translation

#: What keeps a share defined where the target finds all of its tokens impossible.
TINY = 1e-30


def translate(readings: Sequence[Reading], target_prob: Tensor) -> Translation:
    """Every row's belief over the target's vocabulary: heavy tokens one by one, all others through the tables.

    Args:
        readings: One a row, all of one translator.
        target_prob: (N, V) the target's own distributions.

    Returns:
        `prob` (N, V) and `lost` (N,), normalised; a row whose strict reading leaves next to nothing is read freely.
    """
    found = _sum(readings, target_prob)
    totals = (found.prob.sum(-1) + found.lost).tolist()
    for n, (reading, total) in enumerate(zip(readings, totals, strict=True)):
        free = reading.or_free(total)
        if free is not reading:
            again = _sum([free], target_prob[n : n + 1])
            found.prob[n], found.lost[n] = again.prob[0], again.lost[0]
    return found.normalised()


def _sum(readings: Sequence[Reading], target_prob: Tensor) -> Translation:
    """Every cover's share of each row's belief, not normalised."""
    prob, lost = torch.zeros_like(target_prob), target_prob.new_zeros(len(target_prob))
    tables: dict[int, list[tuple[int, Cover, list[int]]]] = defaultdict(list)
    shares: list[tuple[int, Sequence[int], float]] = []
    for n, reading in enumerate(readings):
        for cover in reading.covers:
            heavy = reading.single(cover)
            shares += [(n, ends, mass) for _, i, share in heavy for ends, mass in reading.spread((i,), cover, share)]
            places = [at for at, _, _ in heavy]
            if cover.table is not None:
                tables[id(cover.table)].append((n, cover, places))
            else:
                light = cover.prob.clone()
                light[places] = 0.0
                fits = cover.goals >= 0
                prob[n].index_add_(0, cover.goals[fits].to(prob.device), light[fits].to(prob.device))
    for group in tables.values():
        rows = torch.tensor([n for n, _, _ in group], device=prob.device)
        weights = torch.tensor([cover.weight for _, cover, _ in group], device=prob.device)
        light = torch.stack([cover.node.logp for _, cover, _ in group]).to(prob.device).add_(weights[:, None]).exp_()  # (M, A)
        for row, (_, _, places) in zip(light, group, strict=True):
            row[places] = 0.0
        table = cast(Table, group[0][1].table).to(prob.device)
        part = table.apply(light, target_prob if len(group) == len(target_prob) else target_prob[rows])
        prob.index_add_(0, rows, part.prob)
        lost.index_add_(0, rows, part.lost)
    _share(shares, target_prob, prob)
    return Translation(prob, lost)


def _share(shares: Sequence[tuple[int, Sequence[int], float]], target_prob: Tensor, prob: Tensor) -> None:
    """Add each mass to its row's target tokens by the target's own distribution, a little more to the first of them."""
    some = [(n, ends, mass) for n, ends, mass in shares if ends]
    width = prob.shape[-1]
    ids = torch.tensor([n * width + t for n, ends, _ in some for t in ends], dtype=torch.long, device=prob.device)
    group = torch.tensor([g for g, (_, ends, _) in enumerate(some) for _ in ends], dtype=torch.long, device=prob.device)
    first = torch.tensor([at == 0 for _, ends, _ in some for at in range(len(ends))], dtype=prob.dtype, device=prob.device)
    masses = torch.tensor([mass for _, _, mass in some], dtype=prob.dtype, device=prob.device)
    weights = target_prob.reshape(-1)[ids]
    weights = weights + first * (SETTLED_WEIGHT * _sums(weights, group, len(some))[group] + TINY)
    prob.view(-1).index_add_(0, ids, weights * (masses / _sums(weights, group, len(some)))[group])


def _sums(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """(G,) the sum of the values (M,) of each group."""
    return values.new_zeros(n_groups).index_add_(0, group, values)
