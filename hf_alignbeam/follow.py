"""The anchor following a target's text: which of its tokens are fed, what is pending, what it would say next.

Knows bytes, the anchor's cache and the translation tables. Knows no scores, no mixing rule and no template. The anchor
reads its own tokenisation of the answer; earlier points of it, whose longer tokens the text has only begun, keep their
share of the belief (arXiv 2506.14123 calls the set of them a covering tree; here it is one chain and what was looked
ahead).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .anchor import AnchorCache, Append
from .translate import SETTLED_WEIGHT, Continuations, Table, Translation, VocabularyTranslator
from .vocab import complete_characters

Path = tuple[int, ...]

#: Below this share of the anchor's belief, what is canonical for the target does not count any more.
CANONICAL_SHARE = 0.05

#: Anchor tokens of an answer that stay open to be read anew when more text comes, before the oldest are settled.
N_OPEN_TOKENS = 24
#: Anchor tokens that carry at least this much of its belief are followed one by one; a look-ahead is worth a forward
#: where as much hangs on it.
HEAVY_MASS = 0.05
#: What carries less goes where the text before it goes.
LIGHT_MASS = 0.001
#: At most so many of the heavy ones at one point.
N_HEAVY = 4
#: How many of the target's likeliest tokens are asked whether the anchor may be on its way to them.
N_OWN_TOKENS = 8
#: How many of the anchor's likeliest tokens are followed after a looked-ahead path.
N_BRANCHES = 32


@dataclass(frozen=True)
class Start:
    """How one row begins: the anchor's prompt ids, the white space its answers begin with, the same for the target, and
    the bytes of the answer that the prompt already holds."""

    prompt_ids: list[int]
    lead_in: bytes
    owed: bytes
    begun: bytes = b""


@dataclass
class Row:
    """What is known of one row since its last settled token.

    Attributes:
        text: The bytes of the answer there, as the anchor would write them.
        path: The anchor's tokens for them.
        logp: By path, the anchor's next-token log-probabilities (A,); `()` is the settled boundary itself.
        slots: By path, the cache slot of its last token.
        position: The position of the next token after the settled ones.
        owed: Bytes that the target still has to write before the answer's first.
        written: The target's tokens, each with the place in `text` where it begins.
        lead_in: The white space at the start of `text` that no target token wrote.
        prefix: The owed bytes that the target wrote in front of `text`.
    """

    text: bytes
    path: Path
    logp: dict[Path, Tensor]
    slots: dict[Path, int]
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
        weight: The anchor's belief in it, relative to the likeliest point's.
        pending: The bytes of the text after it.
        onward: What the anchor may say there: a whole table, or the few tokens that go on from inside a word.
    """

    path: Path
    weight: float
    pending: bytes
    onward: Table | Continuations


@dataclass(frozen=True)
class OpenPath:
    """Anchor tokens after which the target's next token is still open.

    Attributes:
        open_mass: How much belief hangs on what the anchor says next.
        mass: The belief in the path.
        ids: The tokens, from the cover's point on.
        cover: Where they begin.
    """

    open_mass: float
    mass: float
    ids: Path
    cover: Cover

    @property
    def path(self) -> Path:
        """The tokens from the last settled one on."""
        return self.cover.path + self.ids


class Follower:
    """The anchor's side of one call of `generate`, a row for each of the target's.

    Args:
        anchor: The anchor model.
        translator: Between the two vocabularies.
        starts: How each row begins.
        n_lookahead: How many extra forwards of the anchor a step may spend where its token leaves the target's open.
    """

    def __init__(self, anchor: PreTrainedModel, translator: VocabularyTranslator, starts: Sequence[Start], n_lookahead: int):
        self._translator = translator
        self._n_lookahead = n_lookahead
        self.cache = AnchorCache(anchor, [start.prompt_ids for start in starts])
        self.rows = [
            Row(
                text=start.lead_in + start.begun,
                path=(),
                logp={(): logp},
                slots={},
                position=len(start.prompt_ids),
                owed=b"" if start.begun else start.owed,
                lead_in=start.lead_in,
            )
            for start, logp in zip(starts, self.cache.prompt_logp, strict=True)
        ]
        #: Equal vocabularies are the identity, unless the two templates begin an answer differently.
        self._identity = translator.identity and all(start.lead_in == start.owed for start in starts)
        self._read([self._spelled(row, start.begun) for row, start in zip(self.rows, starts, strict=True)])

    def write(self, ids: Sequence[int | None]) -> None:
        """Let each row's answer go on by one target token.

        Args:
            ids: One id a row, None for a row that is not followed any more. An id without bytes must not be given
                unless the vocabularies are equal.
        """
        paths = []
        for row, i in zip(self.rows, ids, strict=True):
            if i is None:
                paths.append(row.path)
            elif self._identity:
                paths.append((*row.path, i))
            else:
                self._add(row, i)
                paths.append(self._spelled(row))
        self._read(paths)
        for number, row in enumerate(self.rows):
            if len(row.path) > N_OPEN_TOKENS:
                self._settle(number, row)

    def translate(self, target_prob: Tensor, rows: Sequence[int]) -> Translation:
        """What the anchor would say next, over the target's vocabulary.

        Args:
            target_prob: (N, V) the target's own distribution, for the rows asked about.
            rows: Their N numbers.

        Returns:
            `prob` (N, V) and `lost` (N,); they sum to 1.
        """
        if self._identity:
            anchor_prob = torch.stack([self.rows[i].logp[self.rows[i].path] for i in rows]).exp()
            return self._translator(anchor_prob.to(target_prob.device), target_prob)
        self._look_ahead(target_prob, rows)
        parts = [self._translate_row(self.rows[i], prob) for i, prob in zip(rows, target_prob, strict=True)]
        whole = Translation(torch.stack([p.prob for p in parts]), torch.stack([p.lost for p in parts]))
        return whole.normalised()

    def translate_top(self, target_prob: Tensor, rows: Sequence[int], n_tokens: int) -> tuple[Tensor, Tensor]:
        """The paper's bridge: only the anchor's likeliest tokens, from where it has read to, by the translator's rule.

        Args:
            target_prob: (N, V) the target's own distribution.
            rows: The N rows asked about.
            n_tokens: How many of the anchor's tokens count.

        Returns:
            The mass (N, V) that reaches each target token, and from how many anchor tokens (N, V).
        """
        prob, n_sources = torch.zeros_like(target_prob), torch.zeros_like(target_prob)
        for n, i in enumerate(rows):
            row = self.rows[i]
            anchor_prob = row.logp[row.path].exp().to(prob.device)[None]  # (1, A)
            values, ids = anchor_prob.topk(min(n_tokens, anchor_prob.shape[-1]))
            top = torch.zeros_like(anchor_prob).scatter(-1, ids, values)
            own = target_prob[n : n + 1]
            if self._identity:
                prob[n], n_sources[n] = (self._translator(part, own).prob[0] for part in (top, (top > 0).float()))
                continue
            table = self._translator.table(b"" if row.path else row.lead_in, row.owed).to(prob.device)
            prob[n], n_sources[n] = (table.apply(part, own).prob[0] for part in (top, (top > 0).float()))
        return prob, n_sources

    def reorder(self, parents: Sequence[int]) -> None:
        """Make row i go on from row `parents[i]`."""
        self.cache.reorder(parents)
        self.rows = [
            replace(
                self.rows[i],
                logp=dict(self.rows[i].logp),
                slots=dict(self.rows[i].slots),
                written=list(self.rows[i].written),
            )
            for i in parents
        ]

    def _add(self, row: Row, i: int) -> None:
        data = self._translator.target.tokens[i] or b""
        row.written.append((len(row.text), i))
        if row.owed.startswith(data):
            row.owed = row.owed[len(data) :]
            row.prefix += data
        else:
            row.prefix += row.owed if data.startswith(row.owed) else b""
            row.text += data.removeprefix(row.owed)
            row.owed = b""

    def _spelled(self, row: Row, begun: bytes = b"") -> Path:
        """The anchor's tokens for the row's text, less a character that is broken off.

        The white space before an answer is no token of its own where tokens are taken as they are (equal vocabularies,
        the paper's rules).
        """
        if (self._identity and not begun) or (self._translator.rule != "bytes" and row.text == row.lead_in):
            return ()
        return self._translator.anchor.encode(row.text[: complete_characters(row.text)])

    def _read(self, paths: Sequence[Path]) -> None:
        """Feed each row the tokens of its path that are not in the cache, and forget the branches not taken."""
        n_known = [
            max(n for n in range(len(path) + 1) if path[:n] in row.logp) for row, path in zip(self.rows, paths, strict=True)
        ]
        self._feed(
            [path[n:] for path, n in zip(paths, n_known, strict=True)],
            [path[:n] for path, n in zip(paths, n_known, strict=True)],
        )
        for row, path in zip(self.rows, paths, strict=True):
            row.path = path
            kept = {path[:n] for n in range(len(path) + 1)} | {p for p in row.logp if self._fits(row, p)}
            row.logp = {p: logp for p, logp in row.logp.items() if p in kept}
            row.slots = {p: slot for p, slot in row.slots.items() if p in kept}

    def _fits(self, row: Row, path: Path) -> bool:
        """Whether the text begins with what a path of anchor tokens spells."""
        return not self._identity and row.text.startswith(self._translator.anchor.spell(path))

    def _feed(self, ids: Sequence[Path], after: Sequence[Path]) -> None:
        if not any(ids):
            return
        start = self.cache.n_slots
        logp = self.cache.append(
            [
                Append(new, [row.slots[path[:n]] for n in range(1, len(path) + 1)], row.position + len(path))
                for row, new, path in zip(self.rows, ids, after, strict=True)
            ]
        )
        for number, (row, new, path) in enumerate(zip(self.rows, ids, after, strict=True)):
            for n in range(len(new)):
                row.logp[path + new[: n + 1]] = logp[number, n]
                row.slots[path + new[: n + 1]] = start + n

    def _settle(self, number: int, row: Row) -> None:
        """Give up reading the row's older half anew: cut before a word where the anchor's tokens do not straddle."""
        tokens = self._translator.anchor.tokens
        n_cut = self._cut(row, tokens) if not self._identity else len(row.path) // 2
        if not n_cut:
            return
        self.cache.settle(number, [row.slots[row.path[:n]] for n in range(1, n_cut + 1)])
        head = row.path[:n_cut]
        n_bytes = 0 if self._identity else sum(len(tokens[i] or b"") for i in head)
        row.text, row.path, row.position, row.lead_in = row.text[n_bytes:], row.path[n_cut:], row.position + n_cut, b""
        row.prefix = b""
        row.logp = {p[n_cut:]: logp for p, logp in row.logp.items() if p[:n_cut] == head}
        row.slots = {p[n_cut:]: slot for p, slot in row.slots.items() if p[:n_cut] == head and len(p) > n_cut}
        row.written = [(at - n_bytes, i) for at, i in row.written if at >= n_bytes]

    def _cut(self, row: Row, tokens: list[bytes | None]) -> int:
        n_bytes = 0
        cuts = []
        for n, i in enumerate(row.path[: N_OPEN_TOKENS // 2]):
            n_bytes += len(tokens[i] or b"")
            tail = row.text[n_bytes:]
            if tail[:1] == b" " and tail[1:2].strip():
                whole = self._translator.anchor.encode(tail[: complete_characters(tail)])
                if whole == row.path[n + 1 :]:
                    cuts.append(n + 1)
        return max(cuts, default=0)

    def _covers(self, row: Row) -> list[Cover]:
        """The points from which the anchor may be writing on: where it has read to, and where a longer token may span.

        A token that the target would not have written this way is left out, unless next to nothing else is left: then
        the target's own tokens are not canonical, and every reading of their bytes counts.
        """
        read = [path for path in row.logp if self._fits(row, path)] if self._translator.rule == "bytes" else [row.path]
        logw = [sum(float(row.logp[path[:n]][i]) for n, i in enumerate(path)) for path in read]
        covers = []
        for path, weight in zip(read, logw, strict=True):
            pending = row.text.removeprefix(self._translator.anchor.spell(path))
            covers.append(Cover(path, math.exp(weight - max(logw)), pending, self._onward(row, pending)))
        strict = [_only_canonical(cover) for cover in covers]
        n_belief, n_strict = (sum(_belief(cover, row) for cover in c) for c in (covers, strict))
        return strict if n_strict > CANONICAL_SHARE * n_belief else covers

    def _onward(self, row: Row, pending: bytes) -> Table | Continuations:
        if not pending or pending == row.lead_in == row.text:
            return self._translator.table(pending, row.owed)
        start = len(row.text) - len(pending)
        written = tuple(i for at, i in row.written if at >= start)
        if all(at != start for at, _ in row.written):
            return self._translator.continuations(pending, (), row.owed)
        return self._translator.continuations(pending, written, row.prefix if start == 0 else b"")

    def _translate_row(self, row: Row, target_prob: Tensor) -> Translation:
        """Every cover's share of the belief: its heavy tokens one by one, all others through the table."""
        prob, lost = torch.zeros_like(target_prob), torch.zeros((), device=target_prob.device)
        for cover in self._covers(row):
            anchor_prob = row.logp[cover.path].exp().to(target_prob.device) * cover.weight  # (A,)
            for i in self._heavy(anchor_prob, cover) if self._translator.rule == "bytes" else ():
                self._spread(row, (i,), cover, float(anchor_prob[i]), target_prob, prob)
                anchor_prob[i] = 0.0
            if isinstance(cover.onward, Table):
                part = cover.onward.to(prob.device).apply(anchor_prob[None], target_prob[None])
                prob += part.prob[0]
                lost = lost + part.lost[0]
            else:
                prob.index_add_(0, cover.onward.target.to(prob.device), anchor_prob[cover.onward.source.to(prob.device)])
        return Translation(prob, lost)

    def _heavy(self, anchor_prob: Tensor, cover: Cover | None = None) -> list[int]:
        """The anchor's likeliest ordinary tokens that weigh more than `HEAVY_MASS`; at a cover, those that go on from it."""
        values, ids = anchor_prob.topk(min(N_HEAVY, len(anchor_prob)))
        heavy = [i for value, i in zip(values.tolist(), ids.tolist(), strict=True) if value > HEAVY_MASS]
        tokens = self._translator.anchor.tokens
        known = [(i, tokens[i] or b"") for i in heavy if i < len(tokens)]
        if cover is None or not cover.pending:
            return [i for i, token in known if token]
        if isinstance(cover.onward, Continuations) and known:
            possible = set(cover.onward.source.tolist())
            return [i for i, _ in known if i in possible]
        return [i for i, token in known if token.startswith(cover.pending) and token != cover.pending]

    def _spread(self, row: Row, ids: Path, cover: Cover, mass: float, target_prob: Tensor, prob: Tensor) -> None:
        """Add the mass of a path of anchor tokens to the target tokens it leads to.

        Where the anchor was asked what comes after it, its next tokens decide; elsewhere the target's own distribution
        over the tokens that the path can still become.
        """
        spellings = self._translator.spellings(ids, cover.pending, row.owed)
        logp = row.logp.get(cover.path + ids)
        if logp is None:
            _share([*spellings, *(_longer(ids, cover) - set(spellings))], mass, target_prob, prob)
            return
        values, nexts = logp.exp().topk(min(N_BRANCHES, len(logp)))
        tokens = self._translator.anchor.tokens
        for value, i in zip((mass * values).tolist(), nexts.tolist(), strict=True):
            if value > LIGHT_MASS and i < len(tokens) and tokens[i]:
                self._spread(row, (*ids, i), cover, value, target_prob, prob)
                mass -= value
        _share(spellings[:1], max(mass, 0.0), target_prob, prob)

    def _look_ahead(self, target_prob: Tensor, rows: Sequence[int]) -> None:
        """Feed the paths that most belief hangs on, one a row and forward, while the budget lasts.

        What follows each of them is in its row's `logp` from here on, until the target's next token is known.
        """
        if self._translator.rule != "bytes" or not self._n_lookahead:
            return
        own = dict(zip(rows, target_prob, strict=True))
        queues = {i: self._open_paths(self.rows[i], prob) for i, prob in own.items()}
        for _ in range(self._n_lookahead):
            chosen = {i: max(queue, key=lambda item: item.open_mass) for i, queue in queues.items() if queue}
            if not chosen:
                break
            paths = [chosen[i].path if i in chosen else () for i in range(len(self.rows))]
            news = [path[-1:] if path not in row.logp else () for row, path in zip(self.rows, paths, strict=True)]
            self._feed(news, [path[:-1] for path in paths])
            for i, item in chosen.items():
                queues[i].remove(item)
                queues[i] += self._open_after(self.rows[i], item.cover, item.ids, item.mass, own[i])

    def _open_paths(self, row: Row, target_prob: Tensor) -> list[OpenPath]:
        """Paths of one anchor token on which more than `HEAVY_MASS` of the row's belief hangs."""
        return [item for cover in self._covers(row) for item in self._open_after(row, cover, (), cover.weight, target_prob)]

    def _open_after(self, row: Row, cover: Cover, ids: Path, mass: float, target_prob: Tensor) -> list[OpenPath]:
        """The paths one anchor token longer that are still open, by what the target itself would make of them."""
        anchor_prob = row.logp[cover.path + ids].exp() * mass
        likely = target_prob.topk(min(N_OWN_TOKENS, len(target_prob))).indices.tolist()
        found = []
        for i in self._heavy(anchor_prob, None if ids else cover):
            path, value = (*ids, i), float(anchor_prob[i])
            spellings = self._translator.spellings(path, cover.pending, row.owed)
            others = {*spellings[1:], *_longer(path, cover)} - set(spellings[:1])
            others |= {t for t in likely if self._translator.may_grow(path, t, cover.pending, row.owed)}
            further = float(target_prob[list(others)].sum())
            settled = float(target_prob[list(spellings[:1])].sum()) + SETTLED_WEIGHT
            found.append(OpenPath(value * further / (further + settled), value, path, cover))
        return [item for item in found if item.open_mass > HEAVY_MASS]


def _longer(ids: Path, cover: Cover) -> set[int]:
    """The target tokens that a path of anchor tokens is known to be a proper start of."""
    return set(cover.onward.extensions.get(ids, ())) if isinstance(cover.onward, Table) else set()


def _only_canonical(cover: Cover) -> Cover:
    return cover if isinstance(cover.onward, Table) else replace(cover, onward=cover.onward.only_canonical())


def _belief(cover: Cover, row: Row) -> float:
    """How much of the anchor's belief goes on from a cover."""
    if isinstance(cover.onward, Continuations):
        fitting = cover.onward.source
    elif cover.onward.possible is not None:
        fitting = cover.onward.possible.nonzero().flatten()
    else:
        return cover.weight
    logp = row.logp[cover.path]
    return cover.weight * float(logp[fitting.to(logp.device)].exp().sum())


def _share(ends: Sequence[int], mass: float, target_prob: Tensor, prob: Tensor) -> None:
    """Share mass among target tokens by the target's own distribution, with a little weight on the first of them."""
    if ends:
        weights = target_prob[list(ends)]
        weights[0] += SETTLED_WEIGHT
        prob.index_add_(0, torch.tensor(list(ends), device=prob.device), weights * (mass / weights.sum()))
