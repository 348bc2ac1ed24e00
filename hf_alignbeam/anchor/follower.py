"""The anchor following a target's text: which of its tokens are fed, what is pending, what it would say next.

Knows bytes and the anchor's cache. Knows no scores, no mixing rule and no template; what the anchor's log-probabilities
mean for the target is `belief.py`'s business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_alignbeam.anchor.covering import CoverDistribution, OpenPath, translate
from hf_alignbeam.anchor.state import LEAST_BEGUN, LEAST_STEP, N_WORD_TOKENS, Node, Path, RowState
from hf_alignbeam.inference.branching_cache import Append, BranchingCache, Leaf
from hf_alignbeam.inference.engines import Engine
from hf_alignbeam.tokenization.vocabulary import complete_characters
from hf_alignbeam.translation.translator import Translation, VocabularyTranslator

#: Anchor tokens of an answer that stay open to be read anew when more text comes, before the oldest are settled.
N_OPEN_TOKENS = 24
#: Of a begun answer, at least so many tokens stay open.
N_CUT = 12

#: How many slots of the anchor's cache may lie unused before they are swept out.
N_UNUSED = 64

#: How many tokens of a single answer can be taken back: assisted generation proposes some and keeps the first few of them.
N_BACK = 64


@dataclass(frozen=True)
class Start:
    """How one row begins: the anchor's prompt ids, the white space its answers begin with, the same for the target, and
    the bytes of the answer that the prompt already holds."""

    prompt_ids: list[int]
    leading_whitespace: bytes
    target_only_prefix: bytes
    prefill: bytes = b""


class Follower:
    """The anchor's side of one call of `generate`, a row for each of the target's.

    Its last states are kept, so that a single answer can be taken back to an earlier token.

    Args:
        engine: The anchor, ready to be fed.
        translator: Between the two vocabularies.
        starts: How each row begins.
        n_lookahead: How many extra forwards of the anchor a step may spend where its token leaves the target's open.
    """

    def __init__(self, engine: Engine, translator: VocabularyTranslator, starts: Sequence[Start], n_lookahead: int):
        self._translator = translator
        self._n_lookahead = n_lookahead
        prefill = [_committed(start, translator) for start in starts]
        self.cache = BranchingCache(
            engine, [[*start.prompt_ids, *head] for start, (head, _) in zip(starts, prefill, strict=True)]
        )
        rows = [
            RowState(
                text=text,
                path=(),
                nodes={(): Node(logp.clone())},
                settled=(),
                target_only_prefix=b"" if start.prefill else start.target_only_prefix,
                leading_whitespace=b"" if head else start.leading_whitespace,
            )
            for start, (head, text), logp in zip(starts, prefill, self.cache.prompt_logp, strict=True)
        ]
        self._states = {0: rows}  # by the number of tokens written
        self._ids: dict[int, list[int | None]] = {}  # what each state but the first was written with
        self._n_back = N_BACK if len(rows) == 1 else 1  # nobody takes back tokens of a batch
        self._goes_back = False
        self.n_written = 0
        #: Equal vocabularies are the identity, unless the two templates begin an answer differently.
        self._identity = translator.identity and all(start.leading_whitespace == start.target_only_prefix for start in starts)
        self._read(rows, [self._spelled(row, start.prefill) for row, start in zip(rows, starts, strict=True)], LEAST_BEGUN)

    @property
    def rows(self) -> list[RowState]:
        """What is known of each row at this point."""
        return self._states[self.n_written]

    def can_go_back(self, n_written: int) -> bool:
        """Whether the state after so many tokens is still known."""
        return n_written in self._states

    def go_back(self, n_written: int) -> None:
        """Take back every token but the first so many."""
        self.n_written = n_written
        self._goes_back = True

    def write(self, ids: Sequence[int | None]) -> None:
        """Let each row's answer go on by one target token.

        Args:
            ids: One id a row, None for a row that is not followed any more. An id that stands for no bytes leaves the
                text as it is; with equal vocabularies the anchor reads it like any other.
        """
        n_written = self.n_written + 1
        if self._ids.get(n_written) != list(ids):
            rows = [_copy(row) for row in self.rows]
            self._go_on(rows, ids)
            if not self._goes_back:  # what was looked ahead on before this token is not kept for an answer that only grows
                for row in self.rows:
                    row.nodes = self._behind(row)
            self._states = {n: state for n, state in self._states.items() if n_written - self._n_back <= n < n_written}
            self._states[n_written] = rows
            self._ids = {n: before for n, before in self._ids.items() if n in self._states} | {n_written: list(ids)}
            self._sweep()
        self.n_written = n_written

    def _go_on(self, rows: Sequence[RowState], ids: Sequence[int | None]) -> None:
        paths = []
        tokens = self._translator.target.tokens
        for row, i in zip(rows, ids, strict=True):
            if i is None or i >= len(tokens) or not (tokens[i] or self._identity):
                paths.append(row.path)
            elif self._identity:
                paths.append((*row.path, i))
            else:
                self._add(row, i, tokens[i] or b"")
                paths.append(self._spelled(row))
        self._read(rows, paths)
        for row in rows:
            if len(row.path) > N_OPEN_TOKENS:
                self._settle(row)

    def translate(self, target_prob: Tensor, rows: Sequence[int]) -> Translation:
        """What the anchor would say next, over the target's vocabulary.

        Args:
            target_prob: (N, V) the target's own distribution, for the rows asked about.
            rows: Their N numbers.

        Returns:
            `prob` (N, V) and `lost` (N,); they sum to 1.
        """
        if self._identity:
            anchor_prob = torch.stack([self.rows[i].nodes[self.rows[i].path].logp for i in rows]).exp()
            return self._translator(anchor_prob.to(target_prob.device), target_prob)
        readings = {
            i: CoverDistribution.strict(self.rows[i], self._translator, p) for i, p in zip(rows, target_prob, strict=True)
        }
        if self._translator.rule == "bytes":
            self._look_ahead(readings)
        return translate(list(readings.values()), target_prob)

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
            anchor_prob = row.nodes[row.path].logp.exp().to(prob.device)[None]  # (1, A)
            values, ids = anchor_prob.topk(min(n_tokens, anchor_prob.shape[-1]))
            top = torch.zeros_like(anchor_prob).scatter(-1, ids, values)
            own = target_prob[n : n + 1]
            if self._identity:
                prob[n], n_sources[n] = (self._translator(part, own).prob[0] for part in (top, (top > 0).float()))
                continue
            table = self._translator.table(b"" if row.path else row.leading_whitespace, row.target_only_prefix).to(prob.device)
            prob[n], n_sources[n] = (table.apply(part, own).prob[0] for part in (top, (top > 0).float()))
        return prob, n_sources

    def select_rows(self, parents: Sequence[int]) -> None:
        """Make row i go on from row `parents[i]`."""
        self.cache.select_rows(parents)
        self._states = {self.n_written: [_copy(self.rows[i]) for i in parents]}
        self._ids = {}

    def _add(self, row: RowState, i: int, data: bytes) -> None:
        row.written = (*row.written, i)[-N_WORD_TOKENS:]
        if row.target_only_prefix.startswith(data):
            row.target_only_prefix = row.target_only_prefix[len(data) :]
        else:
            row.text += data.removeprefix(row.target_only_prefix)
            row.target_only_prefix = b""

    def _spelled(self, row: RowState, prefill: bytes = b"") -> Path:
        """The anchor's tokens for the row's text; what it has no token for is struck from the text.

        The white space before an answer is no token of its own where tokens are taken as they are (equal vocabularies,
        the paper's rules).
        """
        if (self._identity and not prefill) or (self._translator.rule != "bytes" and row.text == row.leading_whitespace):
            return ()
        path = self._translator.anchor.encode(row.text)
        if self._translator.anchor.decode(path) != row.text:
            n_whole = complete_characters(row.text)
            whole = self._translator.anchor.decode(self._translator.anchor.encode(row.text[:n_whole]))
            row.text = whole + row.text[n_whole:]
        return self._broken_off(row) or path

    def _broken_off(self, row: RowState) -> Path | None:
        """Where the text ends inside a character: the anchor's own token for what is pending, if it would write one."""
        if complete_characters(row.text) == len(row.text) or self._translator.rule != "bytes":
            return None
        anchor = self._translator.anchor
        best: tuple[float, Path | None] = (LEAST_STEP, None)
        for path, node in row.nodes.items():
            spelled = anchor.decode(path)
            i = anchor.by_bytes.get(row.text[len(spelled) :]) if row.text.startswith(spelled) else None
            if i is not None:
                best = max(best, (node.weight + float(node.logp[i]), (*path, i)), key=lambda found: found[0])
        return best[1]

    def _read(self, rows: Sequence[RowState], paths: Sequence[Path], least: float = LEAST_STEP) -> None:
        """Feed each row the tokens of its path that are not in the cache, and forget the branches not taken."""
        n_known = [max(n for n in range(len(path) + 1) if path[:n] in row.nodes) for row, path in zip(rows, paths, strict=True)]
        self._feed(
            rows,
            [path[n:] for path, n in zip(paths, n_known, strict=True)],
            [path[:n] for path, n in zip(paths, n_known, strict=True)],
            least,
        )
        for row, path in zip(rows, paths, strict=True):
            row.path = path
            row.nodes = self._behind(row)

    def _behind(self, row: RowState) -> dict[Path, Node]:
        """The points that lie within the row's text."""
        path, decode = row.path, self._translator.anchor.decode
        read = {path[:n] for n in range(len(path) + 1)}
        return {p: node for p, node in row.nodes.items() if p in read or (not self._identity and row.text.startswith(decode(p)))}

    def _feed(self, rows: Sequence[RowState], ids: Sequence[Path], after: Sequence[Path], least: float) -> None:
        if not any(ids):
            return
        start = self.cache.n_slots
        logp = self.cache.append([Append(new, row.slots(path)) for row, new, path in zip(rows, ids, after, strict=True)])
        for number, (row, new, path) in enumerate(zip(rows, ids, after, strict=True)):
            for n in range(len(new)):
                _add_node(row, path + new[: n + 1], logp[number, n], start + n, least)

    def _settle(self, row: RowState) -> None:
        """Give up reading the row's older half anew: cut before a word where the anchor's tokens do not straddle."""
        tokens = self._translator.anchor.tokens
        n_cut = len(row.path) // 2 if self._identity else self._cut(row, tokens)
        if not n_cut:
            return
        head = row.path[:n_cut]
        row.settled = tuple(row.slots(head))
        boundary = row.nodes[head].weight
        n_bytes = 0 if self._identity else sum(len(tokens[i] or b"") for i in head)
        row.text, row.path, row.leading_whitespace = row.text[n_bytes:], row.path[n_cut:], b""
        kept = {p[n_cut:]: node for p, node in row.nodes.items() if p[:n_cut] == head}
        row.nodes = {p: replace(node, weight=node.weight - boundary) for p, node in kept.items()}

    def _sweep(self) -> None:
        """Drop what was looked ahead on and not taken, once it is much."""
        rows = [row for state in self._states.values() for row in state]
        used = {node.slot for row in rows for node in row.nodes.values() if node.slot is not None}.union(
            *(row.settled for row in rows)
        )
        if self.cache.n_unused(used) <= N_UNUSED:
            return
        number = self.cache.drop_unused_slots(used)
        for row in rows:
            row.settled = tuple(number[slot] for slot in row.settled)
            row.nodes = {p: n if n.slot is None else replace(n, slot=number[n.slot]) for p, n in row.nodes.items()}

    def _cut(self, row: RowState, tokens: list[bytes | None]) -> int:
        n_bytes = 0
        cuts = []
        for n, i in enumerate(row.path[: N_OPEN_TOKENS // 2]):
            n_bytes += len(tokens[i] or b"")
            tail = row.text[n_bytes:]
            if _begins_word(tail):
                whole = self._translator.anchor.encode(tail)
                if whole == row.path[n + 1 :]:
                    cuts.append(n + 1)
        return max(cuts, default=N_OPEN_TOKENS // 2 if len(row.path) > 4 * N_OPEN_TOKENS else 0)

    def _look_ahead(self, readings: Mapping[int, CoverDistribution]) -> None:
        """Feed the open paths that most belief hangs on, a few a row and forward, while the budget lasts.

        Each of them is among its row's `nodes` from here on, until the target's next token is known.
        """
        queues = {i: reading.open_paths() if self._n_lookahead else [] for i, reading in readings.items()}
        width = self.cache.n_leaves
        for _ in range(self._n_lookahead):
            chosen: dict[int, list[OpenPath]] = {}
            for i, queue in queues.items():
                queue.sort(key=lambda item: item.mass, reverse=True)
                chosen[i], queue[:] = queue[:width], queue[width:]
            if not any(chosen.values()):
                break
            self._ask({i: [item.path for item in items] for i, items in chosen.items()})
            for i, items in chosen.items():
                for item in items:
                    queues[i] += readings[i].open_after(item)

    def _ask(self, paths: Mapping[int, Sequence[Path]]) -> None:
        """Feed, in one forward, the last token of each of several paths of some rows that are not fed yet."""
        new = {i: [path for path in some if path not in self.rows[i].nodes] for i, some in paths.items()}
        if not any(new.values()):
            return
        leaves = [[Leaf(path[-1], row.slots(path[:-1])) for path in new.get(i, ())] for i, row in enumerate(self.rows)]
        start = self.cache.n_slots
        logp = self.cache.branch(leaves)
        for i, some in new.items():
            for n, path in enumerate(some):
                _add_node(self.rows[i], path, logp[i, n], start + n, LEAST_STEP)


def _add_node(row: RowState, path: Path, logp: Tensor, slot: int, least: float) -> None:
    before = row.nodes[path[:-1]]
    row.nodes[path] = Node(logp.clone(), before.weight + max(float(before.logp[path[-1]]), least), slot)


def _committed(start: Start, translator: VocabularyTranslator) -> tuple[Path, bytes]:
    """The anchor's tokens of what a begun answer says before its last words, and the text that stays open."""
    text = start.leading_whitespace + start.prefill
    ids = translator.anchor.encode(text)
    n_bytes = 0
    head: Path = ()
    tail = text
    for n, i in enumerate(ids[:-N_CUT]):
        n_bytes += len(translator.anchor.tokens[i] or b"")
        if _begins_word(text[n_bytes : n_bytes + 2]):
            head, tail = ids[: n + 1], text[n_bytes:]
    return (head, tail) if translator.anchor.encode(tail) == ids[len(head) :] else ((), text)


def _begins_word(tail: bytes) -> bool:
    return tail[:1] == b" " and bool(tail[1:2].strip())


def _copy(row: RowState) -> RowState:
    return replace(row, nodes=dict(row.nodes))
