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
from .translate import Table, Translation, VocabularyTranslator
from .vocab import complete_characters

Path = tuple[int, ...]

#: Anchor tokens of an answer that stay open to be read anew when more text comes, before the oldest are settled.
N_OPEN_TOKENS = 24
#: A look-ahead is worth a forward where at least this much of the anchor's belief hangs on it.
OPEN_MASS = 0.05
#: How many paths of a row compete for the look-ahead.
N_OPEN_PATHS = 4
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
    """

    path: Path
    weight: float
    pending: bytes


@dataclass(frozen=True)
class OpenPath:
    """Anchor tokens after which the target's next token is still open.

    Attributes:
        open_mass: How much belief hangs on what the anchor says next.
        path: The tokens, those already fed included.
        n_base: How many of them the text already holds.
        mass: The belief in the path.
        table: The translation where the text ends.
    """

    open_mass: float
    path: Path
    n_base: int
    mass: float
    table: Table


class Follower:
    """The anchor's side of one call of `generate`, a row for each of the target's.

    Args:
        anchor: The anchor model.
        translator: Between the two vocabularies.
        starts: How each row begins.
        n_lookahead: How many extra forwards of the anchor a step may spend where its token leaves the target's open.
    """

    def __init__(
        self, anchor: PreTrainedModel, translator: VocabularyTranslator, starts: Sequence[Start], n_lookahead: int
    ):
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
        opened = self._look_ahead(target_prob, rows)
        parts = [self._translate_row(self.rows[i], prob, opened.get(i, [])) for i, prob in zip(rows, target_prob, strict=True)]
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
                self.rows[i], logp=dict(self.rows[i].logp), slots=dict(self.rows[i].slots), written=list(self.rows[i].written)
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
        n_known = [max(n for n in range(len(path) + 1) if path[:n] in row.logp) for row, path in zip(self.rows, paths, strict=True)]
        self._feed([path[n:] for path, n in zip(paths, n_known, strict=True)], [path[:n] for path, n in zip(paths, n_known, strict=True)])
        for row, path in zip(self.rows, paths, strict=True):
            row.path = path
            kept = {path[:n] for n in range(len(path) + 1)}
            row.logp = {p: logp for p, logp in row.logp.items() if p in kept}
            row.slots = {p: slot for p, slot in row.slots.items() if p in kept}

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
        """The points from which the anchor may be writing on: where it has read to, and where a longer token may span."""
        tokens = self._translator.anchor.tokens
        points, logw, pending = [], 0.0, row.text
        for n, i in enumerate(row.path):
            points.append((row.path[:n], logw, pending))
            logw += float(row.logp[row.path[:n]][i])
            pending = pending[len(tokens[i] or b"") :]
        points.append((row.path, logw, pending))
        if self._translator.rule != "bytes":
            points = points[-1:]
        most = max(logw for _, logw, _ in points)
        return [Cover(path, math.exp(logw - most), pending) for path, logw, pending in points]

    def _table(self, row: Row, pending: bytes) -> Table | None:
        """The whole table where one applies: nothing is pending, or only the white space before the answer."""
        if not pending or pending == row.lead_in == row.text:
            return self._translator.table(pending, row.owed)
        return None

    def _translate_row(self, row: Row, target_prob: Tensor, opened: Sequence[Path]) -> Translation:
        prob, lost = torch.zeros_like(target_prob), torch.zeros((), device=target_prob.device)
        for cover in self._covers(row):
            anchor_prob = row.logp[cover.path].exp().to(target_prob.device) * cover.weight  # (A,)
            table = self._table(row, cover.pending)
            if table is None:
                ids, goals = self._continuations(row, cover.pending)
                prob.index_add_(0, goals.to(prob.device), anchor_prob[ids.to(prob.device)])
                continue
            for path in opened:
                if path[:-1] == cover.path:
                    self._spread(row, table, path, len(cover.path), float(anchor_prob[path[-1]]), target_prob, prob)
                    anchor_prob[path[-1]] = 0.0
            part = table.to(prob.device).apply(anchor_prob[None], target_prob[None])
            prob += part.prob[0]
            lost = lost + part.lost[0]
        return Translation(prob, lost)

    def _continuations(self, row: Row, pending: bytes) -> tuple[Tensor, Tensor]:
        """Where anchor tokens that span `pending` lead, given the target's tokens that wrote it."""
        start = len(row.text) - len(pending)
        written = tuple(i for at, i in row.written if at >= start)
        if all(at != start for at, _ in row.written):
            return self._translator.continuations(pending, (), row.owed)
        return self._translator.continuations(pending, written, row.prefix if start == 0 else b"")

    def _spread(
        self, row: Row, table: Table, path: Path, n_base: int, mass: float, target_prob: Tensor, prob: Tensor
    ) -> None:
        """Add the mass of an opened path to the target tokens that the anchor's next tokens make of it."""
        values, ids = row.logp[path].exp().topk(min(N_BRANCHES, len(row.logp[path])))
        rest = mass
        for value, i in zip(values.tolist(), ids.tolist(), strict=True):
            branch, branch_mass = (*path, i), mass * value
            rest -= branch_mass
            if branch in row.logp:
                self._spread(row, table, branch, n_base, branch_mass, target_prob, prob)
            else:
                self._share(table, branch[n_base:], branch_mass, target_prob, prob)
        goal, _ = self._goals(table, path[n_base:])
        if goal is not None:
            prob[goal] += max(rest, 0.0)

    def _share(self, table: Table, branch: Path, mass: float, target_prob: Tensor, prob: Tensor) -> None:
        """Share mass among the target tokens that a path can become, by the target's own distribution."""
        goal, longer = self._goals(table, branch)
        ends = longer if goal is None else [*longer, goal]
        weights = target_prob[ends]
        if weights.sum() > 0:
            prob.index_add_(0, torch.tensor(ends, device=prob.device), weights * (mass / weights.sum()))
        elif goal is not None:
            prob[goal] += mass

    def _goals(self, table: Table, branch: Path) -> tuple[int | None, list[int]]:
        """The target token that a path of anchor tokens is, and those that it is a proper start of."""
        goal = self._translator.goal(branch, table.pending, table.owed)
        return goal, [t for t in table.extensions.get(branch, []) if t != goal]

    def _look_ahead(self, target_prob: Tensor, rows: Sequence[int]) -> dict[int, list[Path]]:
        """Feed the paths that most belief hangs on, one a row and forward, while the budget lasts.

        Returns:
            By row, the paths opened: what follows each of them is known from here on.
        """
        opened: dict[int, list[Path]] = {}
        if self._translator.rule != "bytes" or not self._n_lookahead:
            return opened
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
                opened.setdefault(i, []).append(item.path)
                queues[i] += self._open_children(self.rows[i], item, own[i])
        return opened

    def _open_paths(self, row: Row, target_prob: Tensor) -> list[OpenPath]:
        """Paths of one anchor token on which more than `OPEN_MASS` of the row's belief hangs."""
        found = []
        for cover in self._covers(row):
            table = self._table(row, cover.pending)
            if table is not None and len(table.groups):
                anchor_prob = row.logp[cover.path].exp().to(target_prob.device)[None]
                open_mass = cover.weight * table.open_mass(anchor_prob, target_prob[None])[0]  # (G,)
                values, groups = open_mass.topk(min(N_OPEN_PATHS, len(open_mass)))
                for value, group in zip(values.tolist(), groups.tolist(), strict=True):
                    first = int(table.groups[group])
                    mass = cover.weight * float(anchor_prob[0, first])
                    found.append(OpenPath(value, (*cover.path, first), len(cover.path), mass, table))
        return [item for item in found if item.open_mass > OPEN_MASS]

    def _open_children(self, row: Row, item: OpenPath, target_prob: Tensor) -> list[OpenPath]:
        """The paths one anchor token longer than an opened one that are still open themselves."""
        found = []
        values, ids = row.logp[item.path].exp().topk(min(N_OPEN_PATHS, len(row.logp[item.path])))
        for value, i in zip(values.tolist(), ids.tolist(), strict=True):
            path, mass = (*item.path, i), item.mass * value
            goal, longer = self._goals(item.table, path[item.n_base :])
            if longer:
                further = float(target_prob[longer].sum())
                here = float(target_prob[goal]) if goal is not None else 0.0
                open_mass = mass * further / max(further + here, torch.finfo().tiny)
                found.append(OpenPath(open_mass, path, item.n_base, mass, item.table))
        return [item for item in found if item.open_mass > OPEN_MASS]
