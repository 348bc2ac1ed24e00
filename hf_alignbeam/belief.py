"""What the anchor believes comes next, from every point of a text that it may be writing on from.

Knows the anchor's log-probabilities at the points it was fed to, and the translation tables. Feeds nothing itself: where
only another forward of the anchor would tell, it names the path (`open_paths`). Byte-exact prediction sums over all
tokenisations that cover the text (arXiv 2506.14123); here they are the chain that was fed and what was looked ahead.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .translate import SETTLED_WEIGHT, Continuations, Table, Translation, VocabularyTranslator

Path = tuple[int, ...]

#: Below this share of the anchor's belief, what is canonical for the target does not count any more.
CANONICAL_SHARE = 0.05

#: The least log-probability that a token of the text counts with. Where the anchor finds the text absurd, what it says
#: inside a word is noise, and must not outweigh the reading of the text as it stands.
LEAST_STEP = math.log(1e-6)

#: Anchor tokens that carry at least this much of its belief are followed one by one; a look-ahead is worth a forward
#: where as much hangs on it.
HEAVY_MASS = 0.01
#: What carries less goes where the text before it goes.
LIGHT_MASS = 0.001
#: At most so many of the heavy ones at one point.
N_HEAVY = 12
#: How many of the target's likeliest tokens are asked whether the anchor may be on its way to them.
N_OWN_TOKENS = 8
#: How many of the anchor's likeliest tokens are followed after a looked-ahead path.
N_BRANCHES = 32


@dataclass(frozen=True)
class Node:
    """A point that the anchor was fed to.

    Attributes:
        logp: (A,) the anchor's next-token log-probabilities there.
        weight: The log-probability of the tokens from the settled boundary to here, none less than `LEAST_STEP`.
        slot: The cache slot of the last of them; None at the boundary itself.
    """

    logp: Tensor
    weight: float = 0.0
    slot: int | None = None


@dataclass
class Row:
    """What is known of one row since its last settled token.

    Attributes:
        text: The bytes of the answer there, as the anchor would write them.
        path: The anchor's tokens for them.
        nodes: By the tokens that lead there, every point fed; `()` is the settled boundary itself.
        position: The position of the next token after the settled ones.
        owed: Bytes that the target still has to write before the answer's first.
        written: The target's tokens, each with the place in `text` where it begins.
        lead_in: The white space at the start of `text` that no target token wrote.
        prefix: The owed bytes that the target wrote in front of `text`.
    """

    text: bytes
    path: Path
    nodes: dict[Path, Node]
    position: int
    owed: bytes
    lead_in: bytes
    prefix: bytes = b""
    written: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Cover:
    """A point of the row's text from which the anchor may be writing on: everything before it is fed.

    Attributes:
        path: The anchor's tokens up to it.
        pending: The bytes of the text after it.
        owed: Bytes that the target still has to write before the anchor's next.
        onward: What the anchor may say there: a whole table, or the few tokens that go on from inside a word.
        prob: The belief in each anchor token there, relative to the likeliest point's: (A,) with a table, else (M,) in
            the order of the continuations.
    """

    path: Path
    pending: bytes
    owed: bytes
    onward: Table | Continuations
    prob: Tensor

    @property
    def belief(self) -> float:
        """How much belief goes on from here."""
        if isinstance(self.onward, Table) and self.onward.possible is not None:
            return float((self.prob[: len(self.onward.possible)] * self.onward.possible.to(self.prob.device)).sum())
        return float(self.prob.sum())


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


def covers(row: Row, translator: VocabularyTranslator) -> list[Cover]:
    """The points from which the anchor may be writing on: where it has read to, and where a longer token may span.

    A token that the target would not have written this way is left out, unless next to nothing else is left: then the
    target's own tokens are not canonical, and every reading of their bytes counts.
    """
    spelled = {path: translator.anchor.spell(path) for path in row.nodes}
    read = [path for path in row.nodes if row.text.startswith(spelled[path])] if translator.rule == "bytes" else [row.path]
    onward = {path: _onward(row, translator, row.text.removeprefix(spelled[path])) for path in read}
    going_on = [path for path in read if isinstance(onward[path], Table) or len(onward[path].source)]
    most = max((row.nodes[path].weight for path in going_on), default=0.0)
    found = []
    for path in going_on:
        belief = row.nodes[path].logp + (row.nodes[path].weight - most)
        if isinstance(onward[path], Continuations):
            belief = belief[onward[path].source.to(belief.device)]
        found.append(Cover(path, row.text.removeprefix(spelled[path]), row.owed, onward[path], belief.exp()))
    strict = [_only_canonical(cover) for cover in found]
    n_belief, n_strict = (sum(cover.belief for cover in some) for some in (found, strict))
    return strict if n_strict > CANONICAL_SHARE * n_belief else found


def translate_row(row: Row, translator: VocabularyTranslator, target_prob: Tensor) -> Translation:
    """Every cover's share of the belief: its heavy tokens one by one, all others through the table.

    Args:
        row: One row.
        translator: Between the two vocabularies.
        target_prob: (V,) the target's own distribution.

    Returns:
        `prob` (V,) and `lost` (), not normalised.
    """
    prob, lost = torch.zeros_like(target_prob), torch.zeros((), device=target_prob.device)
    for cover in covers(row, translator):
        light = cover.prob.to(prob.device)
        for at, i, mass in _heavy(cover, translator) if translator.rule == "bytes" else ():
            _spread(row, translator, (i,), cover, mass, target_prob, prob)
            light[at] = 0.0
        if isinstance(cover.onward, Table):
            part = cover.onward.to(prob.device).apply(light[None], target_prob[None])
            prob += part.prob[0]
            lost = lost + part.lost[0]
        else:
            prob.index_add_(0, cover.onward.target.to(prob.device), light)
    return Translation(prob, lost)


def open_paths(row: Row, translator: VocabularyTranslator, target_prob: Tensor) -> list[OpenPath]:
    """Paths of one anchor token on which more than `HEAVY_MASS` of the row's belief hangs."""
    found = []
    for cover in covers(row, translator):
        found += _open(translator, cover, (), [(i, mass) for _, i, mass in _heavy(cover, translator)], target_prob)
    return found


def open_after(row: Row, translator: VocabularyTranslator, item: OpenPath, target_prob: Tensor) -> list[OpenPath]:
    """The paths one anchor token longer than a fed one that are still open."""
    nexts = _heavy_ids(row.nodes[item.path].logp.exp() * item.mass, translator)
    return _open(translator, item.cover, item.ids, nexts, target_prob)


def _open(
    translator: VocabularyTranslator, cover: Cover, ids: Path, nexts: list[tuple[int, float]], target_prob: Tensor
) -> list[OpenPath]:
    """Of the tokens that may come after `ids`, those that leave the target's open."""
    paths = [OpenPath(mass, (*ids, i), cover) for i, mass in nexts]
    return [item for item in paths if len(_ends(translator, item.ids, cover, target_prob)) > 1]


def _ends(translator: VocabularyTranslator, ids: Path, cover: Cover, target_prob: Tensor) -> list[int]:
    """The target tokens that a path of anchor tokens may lead to next, the one that its own text becomes first."""
    spellings = translator.spellings(ids, cover.pending, cover.owed)
    likely = target_prob.topk(min(N_OWN_TOKENS, len(target_prob))).indices.tolist()
    grown = (t for t in likely if translator.may_grow(ids, t, cover.pending, cover.owed))
    longer = cover.onward.extensions.get(ids, ()) if isinstance(cover.onward, Table) else ()
    return list(dict.fromkeys((*spellings, *longer, *grown)))


def _onward(row: Row, translator: VocabularyTranslator, pending: bytes) -> Table | Continuations:
    """What the anchor may say where `pending` is all of the text that it has not been fed."""
    if not pending or pending == row.lead_in == row.text:
        return translator.table(pending, row.owed)
    start = len(row.text) - len(pending)
    written = tuple(i for at, i in row.written if at >= start)
    if all(at != start for at, _ in row.written):
        return translator.continuations(pending, (), row.owed)
    return translator.continuations(pending, written, row.prefix if start == 0 else b"")


def _only_canonical(cover: Cover) -> Cover:
    if isinstance(cover.onward, Table):
        return cover
    kept = cover.onward.canonical
    return replace(cover, onward=cover.onward.only_canonical(), prob=cover.prob[kept.to(cover.prob.device)])


def _heavy(cover: Cover, translator: VocabularyTranslator) -> list[tuple[int, int, float]]:
    """A cover's likeliest tokens that weigh more than `HEAVY_MASS`: place in `cover.prob`, id and mass of each."""
    if isinstance(cover.onward, Continuations):
        values, places = cover.prob.topk(min(N_HEAVY, len(cover.prob)))
        sources = cover.onward.source[places.to(cover.onward.source.device)].tolist()
        found = zip(places.tolist(), sources, values.tolist(), strict=True)
        return [(at, i, mass) for at, i, mass in found if mass > HEAVY_MASS]
    tokens, pending = translator.anchor.tokens, cover.pending
    heavy = _heavy_ids(cover.prob, translator)
    return [(i, i, mass) for i, mass in heavy if (tokens[i] or b"").startswith(pending) and tokens[i] != pending]


def _heavy_ids(prob: Tensor, translator: VocabularyTranslator) -> list[tuple[int, float]]:
    """The likeliest ordinary tokens that weigh more than `HEAVY_MASS`, with their masses."""
    values, ids = prob.topk(min(N_HEAVY, len(prob)))
    tokens = translator.anchor.tokens
    found = zip(ids.tolist(), values.tolist(), strict=True)
    return [(i, mass) for i, mass in found if mass > HEAVY_MASS and i < len(tokens) and tokens[i]]


def _spread(
    row: Row, translator: VocabularyTranslator, ids: Path, cover: Cover, mass: float, target_prob: Tensor, prob: Tensor
) -> None:
    """Add the mass of a path of anchor tokens to the target tokens it leads to.

    Where the anchor was asked what comes after it, its next tokens decide; elsewhere the target's own distribution over
    the tokens that the path can still become.
    """
    node = row.nodes.get(cover.path + ids)
    if node is None:
        _share(_ends(translator, ids, cover, target_prob), mass, target_prob, prob)
        return
    values, nexts = node.logp.exp().topk(min(N_BRANCHES, len(node.logp)))
    tokens = translator.anchor.tokens
    for value, i in zip((mass * values).tolist(), nexts.tolist(), strict=True):
        if value > LIGHT_MASS and i < len(tokens) and tokens[i]:
            _spread(row, translator, (*ids, i), cover, value, target_prob, prob)
            mass -= value
    _share(translator.spellings(ids, cover.pending, cover.owed)[:1], max(mass, 0.0), target_prob, prob)


def _share(ends: Sequence[int], mass: float, target_prob: Tensor, prob: Tensor) -> None:
    """Share mass among target tokens by the target's own distribution, with a little weight on the first of them."""
    if ends:
        weights = target_prob[list(ends)]
        weights[0] += SETTLED_WEIGHT
        prob.index_add_(0, torch.tensor(list(ends), device=prob.device), weights * (mass / weights.sum()))
