"""What the anchors of many rows say next, summed over every point they may be writing on from, in the target's vocabulary.

Knows readings and how they share out their mass. Knows no model and no text.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from hf_alignbeam.anchor.state import LEAST_STEP, Node, Path, RowState
from hf_alignbeam.translation.translator import SETTLED_WEIGHT, Table, Translation, VocabularyTranslator

#: Below this share of the anchor's belief, what is canonical for the target does not count any more.
CANONICAL_SHARE = 0.05


#: Anchor tokens that carry at least this much of its belief are followed one by one; a look-ahead is worth a forward
#: where as much hangs on it.
HEAVY_MASS = 0.01


#: What carries less goes where the text before it goes.
LIGHT_MASS = 0.001


#: At most so many of the heavy ones at one point.
N_HEAVY = 12


#: Inside a token of the anchor's, so many of the likeliest that go on from there are looked at: the rest are noise.
N_INSIDE = 256


#: How many of the target's likeliest tokens are asked whether the anchor may be on its way to them.
N_OWN_TOKENS = 8


_NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Cover:
    """A point of the row's text from which the anchor may be writing on: everything before it is fed.

    Attributes:
        path: The anchor's tokens up to it.
        pending: The bytes of the text after it.
        node: The point.
        weight: Its log-probability, relative to the likeliest point's.
        table: What any token there is for the target; None where only tokens that begin with the pending bytes can come.
        ids: (M,) those tokens; empty with a table.
        goals: (M,) where each of them leads, -1 where the target has written the pending bytes otherwise.
    """

    path: Path
    pending: bytes
    node: Node
    weight: float
    table: Table | None
    ids: Tensor
    goals: Tensor

    @cached_property
    def prob(self) -> Tensor:
        """(M,) the belief in each token that begins with the pending bytes."""
        return (self.node.logp[self.ids] + self.weight).exp()

    @property
    def most(self) -> float:
        """The log-probability of the likeliest token there, relative to the likeliest point's."""
        return self.weight + (self.node.likeliest[0][1] if self.table is not None else float(self.node.logp[self.ids].max()))

    @cached_property
    def belief(self) -> float:
        """How much belief goes on from here."""
        if self.table is None:
            return float(self.prob.sum())
        if self.table.possible is None:
            return math.exp(self.weight)
        width = min(len(self.node.logp), len(self.table.possible))
        prob = (self.node.logp[:width] + self.weight).exp()
        return float((prob * self.table.possible[:width].to(prob.device)).sum())

    @property
    def ruled_out(self) -> float:
        """How much of it would have been written otherwise."""
        return float(self.prob[self.goals < 0].sum()) if self.table is None else 0.0


@dataclass(frozen=True)
class OpenPath:
    """Anchor tokens after which the target's next token is still open.

    Attributes:
        mass: The belief in the path.
        ids: The tokens, from the cover's point on.
        cover: Where they begin.
    """

    mass: float
    ids: Path
    cover: Cover

    @property
    def path(self) -> Path:
        """The tokens from the last settled one on."""
        return self.cover.path + self.ids


@dataclass(frozen=True)
class CoverDistribution:
    """One row's belief at one step, given which of the target's tokens its next one must go on from.

    Attributes:
        row: The row.
        translator: Between the two vocabularies.
        target_prob: (V,) the target's own distribution.
        word: The target's tokens since its last word began. Text that it would have written with other tokens is not
            what comes next; empty where it wrote them in a way of its own, and every reading of their bytes counts.
    """

    row: RowState
    translator: VocabularyTranslator
    target_prob: Tensor
    word: Path

    @classmethod
    def strict(cls, row: RowState, translator: VocabularyTranslator, target_prob: Tensor) -> "CoverDistribution":
        """The reading that takes the target's tokens for what it would write, unless that rules out nearly everything."""
        if translator.rule != "bytes":
            return cls(row, translator, target_prob, ())
        reading = cls(row, translator, target_prob, _word(row, translator))
        if not reading.word:
            return reading
        kept = 0.0
        for cover in reading.covers:
            kept += cover.belief - cover.ruled_out
            for at, i, mass in reading.single(cover):
                kept += mass * reading._fitting((i,), cover)
                kept -= mass if cover.table is not None or int(cover.goals[at]) >= 0 else 0.0
        return reading.or_free(kept)

    def or_free(self, kept: float) -> "CoverDistribution":
        """This reading, or the free one where this one keeps next to nothing of the belief."""
        return self if not self.word or kept > CANONICAL_SHARE * self._belief else replace(self, word=())

    @cached_property
    def _belief(self) -> float:
        return sum(cover.belief for cover in self.covers)

    @cached_property
    def covers(self) -> list[Cover]:
        """The points from which the anchor may be writing on: where it has read to, and where a longer token may span."""
        row, anchor = self.row, self.translator.anchor
        spelled = {path: anchor.decode(path) for path in row.nodes}
        pending = {path: row.text[len(text) :] for path, text in spelled.items() if row.text.startswith(text)}
        if self.translator.rule != "bytes":
            pending = {row.path: pending[row.path]}
        begun = {path: left for path, left in pending.items() if self._at_end(left) or anchor.begins_a_token(left)}
        most = max((row.nodes[path].weight for path in begun), default=0.0)
        found = [self._cover(path, left, row.nodes[path].weight - most) for path, left in begun.items()]
        least = max((cover.most for cover in found), default=0.0) + LEAST_STEP
        return [self._led(cover, least) for cover in found if cover.most > least]

    def _cover(self, path: Path, left: bytes, weight: float) -> Cover:
        """A point with every token that may come there; where they lead is not known yet."""
        node = self.row.nodes[path]
        if self._at_end(left):
            return Cover(path, left, node, weight, self.translator.table(left, self.row.target_only_prefix), _NONE, _NONE)
        ids = self.translator.retokenizer.inside(left).to(node.logp.device)
        return Cover(path, left, node, weight, None, ids, _NONE)

    def _led(self, cover: Cover, least: float) -> Cover:
        """The same with the tokens that carry anything at all, and where they lead."""
        if cover.table is not None:
            return cover
        values, places = cover.node.logp[cover.ids].topk(min(N_INSIDE, len(cover.ids)))
        ids = cover.ids[places[values + cover.weight > least]]
        goals = self.translator.retokenizer.goals(ids.tolist(), cover.pending, self.row.target_only_prefix, self.word)
        return replace(cover, ids=ids, goals=torch.tensor(goals, dtype=torch.long, device=ids.device))

    def open_paths(self) -> list[OpenPath]:
        """Paths of one anchor token on which more than `HEAVY_MASS` of the row's belief hangs."""
        return [item for cover in self.covers for item in self._open(cover, (), [(i, mass) for _, i, mass in self.single(cover)])]

    def open_after(self, item: OpenPath) -> list[OpenPath]:
        """The paths one anchor token longer than a fed one that are still open."""
        tokens = self.translator.anchor.tokens
        nexts = [(i, item.mass * math.exp(logp)) for i, logp in self.row.nodes[item.path].likeliest[:N_HEAVY]]
        return self._open(item.cover, item.ids, [(i, m) for i, m in nexts if m > HEAVY_MASS and i < len(tokens) and tokens[i]])

    @cached_property
    def _likely(self) -> list[int]:
        return self.target_prob.topk(min(N_OWN_TOKENS, len(self.target_prob))).indices.tolist()

    def _at_end(self, pending: bytes) -> bool:
        return not pending or pending == self.row.leading_whitespace == self.row.text

    def _open(self, cover: Cover, ids: Path, nexts: list[tuple[int, float]]) -> list[OpenPath]:
        """Of the tokens that may come after `ids`, those that leave the target's open."""
        paths = [OpenPath(mass, (*ids, i), cover) for i, mass in nexts]
        return [item for item in paths if self._is_open(item)]

    def _is_open(self, item: OpenPath) -> bool:
        return 0.0 < self._fitting(item.ids, item.cover) < 1.0 or len(self._ends(item.ids, item.cover, item.mass)) > 1

    def single(self, cover: Cover) -> list[tuple[int, int, float]]:
        """The heavy tokens of a cover, followed one by one: place among its tokens, id and mass of each."""
        if self.translator.rule != "bytes":
            return []
        if cover.table is not None:
            found = [(i, i, math.exp(logp + cover.weight)) for i, logp in cover.node.likeliest[:N_HEAVY]]
        else:
            values, places = cover.prob.topk(min(N_HEAVY, len(cover.prob)))
            found = list(zip(places.tolist(), cover.ids[places].tolist(), values.tolist(), strict=True))
        tokens, pending = self.translator.anchor.tokens, cover.pending
        return [
            (at, i, mass)
            for at, i, mass in found
            if mass > HEAVY_MASS and i < len(tokens) and (tokens[i] or b"").startswith(pending) and (tokens[i] or b"") != pending
        ]

    def _ends(self, ids: Path, cover: Cover, mass: float) -> list[int]:
        """The target tokens that a path of anchor tokens may lead to next, the one that its own text becomes first.

        None at all where the target would have written the text so far with other tokens. What carries little mass is
        taken as it stands.
        """
        pending, target_only_prefix = cover.pending, self.row.target_only_prefix
        if mass <= HEAVY_MASS:
            goal = self.translator.retokenizer.next_token(
                target_only_prefix + self.translator.anchor.decode(ids)[len(pending) :], self.word
            )
            return [] if goal is None else [goal]
        first_tokens = self.translator.retokenizer.first_tokens(ids, pending, target_only_prefix, self.word).tokens
        longer = [t for t in self._likely if self.translator.retokenizer.may_grow(ids, t, pending, target_only_prefix)]
        if cover.table is not None:
            longer += cover.table.extensions.get(ids, ())
        return list(dict.fromkeys((*first_tokens, *self.translator.retokenizer.canonical(tuple(longer), self.word))))

    def _fitting(self, ids: Path, cover: Cover) -> float:
        """Of what may come after a path, the share after which the target's tokens of the last word still stand."""
        return (
            self.translator.retokenizer.first_tokens(ids, cover.pending, self.row.target_only_prefix, self.word).share
            if self.word
            else 1.0
        )

    def spread(self, ids: Path, cover: Cover, mass: float) -> Iterator[tuple[Sequence[int], float]]:
        """The target tokens that a path of anchor tokens leads to, with the mass that each group of them shares.

        Where the anchor was asked what comes after it, its next tokens decide; elsewhere the target's own distribution
        over the tokens that the path can still become.
        """
        node = self.row.nodes.get(cover.path + ids)
        if node is None:
            fitting = self._fitting(ids, cover) if mass > HEAVY_MASS else 1.0
            yield self._ends(ids, cover, mass), mass * fitting
            return
        tokens = self.translator.anchor.tokens
        left = mass
        for i, logp in node.likeliest:
            value = mass * math.exp(logp)
            if value > LIGHT_MASS and i < len(tokens) and tokens[i]:
                yield from self.spread((*ids, i), cover, value)
                left -= value
        yield self._ends(ids, cover, 0.0), max(left, 0.0)


def _word(row: RowState, translator: VocabularyTranslator) -> Path:
    """The target's tokens from the last one on that begins with white space; empty where that is not known."""
    tokens = translator.target.tokens
    starts = [n for n, i in enumerate(row.written) if (tokens[i] or b"")[:1].isspace()]
    return row.written[starts[-1] :] if starts else ()


#: What keeps a share defined where the target finds all of its tokens impossible.
TINY = 1e-30


def translate(readings: Sequence[CoverDistribution], target_prob: Tensor) -> Translation:
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


def _sum(readings: Sequence[CoverDistribution], target_prob: Tensor) -> Translation:
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
