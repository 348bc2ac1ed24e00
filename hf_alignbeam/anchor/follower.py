"""The anchor following the target's text: it is fed each row's text in its own tokens, and predicts what comes next.

Knows bytes and the anchor's cache. Knows no scores, no mixing rule and no template; `covering` and `marginal` turn the anchor's
probabilities into a distribution over the target's vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from hf_alignbeam.anchor.covering import CoverDistribution, TargetDistribution, target_distributions
from hf_alignbeam.anchor.look_ahead import LookAhead
from hf_alignbeam.anchor.marginal import marginal
from hf_alignbeam.anchor.state import MIN_PREFILL_LOGP, MIN_TOKEN_LOGP, N_WORD_TOKENS, Distributions, Node, Path, RowState
from hf_alignbeam.inference.branching_cache import Append, BranchingCache, Leaf
from hf_alignbeam.inference.engines import Engine
from hf_alignbeam.tokenization.vocabulary import complete_characters
from hf_alignbeam.translation.translator import Translation, VocabularyTranslator

#: A row with more anchor tokens than this commits the older half, and never retokenizes it; the second is for equal vocabularies.
MAX_UNCOMMITTED, MAX_UNCOMMITTED_EQUAL = 24, 4
#: At least this many tokens of a prefill stay uncommitted.
MIN_UNCOMMITTED_PREFILL = 12
#: Unused slots of the anchor's cache are dropped once there are more than this.
MAX_UNUSED_SLOTS = 64
#: Free what old positions do not need any more. The installed package has one, the folder of the processor alone none.
CONDENSERS: list[Callable[[Sequence[RowState], VocabularyTranslator], list[RowState]]] = []
#: A single answer can go back by this many tokens: assisted generation proposes several and keeps the first few.
N_BACK = 64


@dataclass(frozen=True)
class RowStart:
    """The beginning of one row.

    Attributes:
        prompt_ids: The anchor's prompt.
        leading_whitespace: The white space with which the anchor's answer begins.
        target_only_prefix: The white space with which the target's answer begins.
        prefill: The bytes of the answer that the prompt already holds.
    """

    prompt_ids: list[int]
    leading_whitespace: bytes
    target_only_prefix: bytes
    prefill: bytes = b""


class Follower:
    """The anchor's side of one call of `generate`, with one row for each row of the target.

    It keeps its last states, so that a single answer can go back to an earlier token.

    Args:
        engine: The anchor, ready to be fed.
        translator: Between the two vocabularies.
        starts: The beginning of each row.
        n_lookahead: How many extra forwards of the anchor a step may take where the target's next token is open.
    """

    def __init__(self, engine: Engine, translator: VocabularyTranslator, starts: Sequence[RowStart], n_lookahead: int):
        self._translator = translator
        #: With equal vocabularies the anchor is fed the target's ids, unless the two templates begin an answer differently.
        self._identity = translator.identity and all(start.leading_whitespace == start.target_only_prefix for start in starts)
        self._n_back = N_BACK if len(starts) == 1 else 1  # the rows of a batch never go back
        self._has_gone_back = False
        self.n_written = 0
        committed = [_commit_prefill(start, translator) for start in starts]
        prompts = [[*start.prompt_ids, *ids] for start, (ids, _) in zip(starts, committed, strict=True)]
        self.cache = BranchingCache(engine, prompts)
        self._n_prompt_slots = self.cache.n_slots
        self._look_ahead = LookAhead(self.cache, translator, n_lookahead) if n_lookahead and translator.rule == "bytes" else None
        rows, paths = [], []
        together = Distributions(self.cache.after_prompt.prob)
        for i, (start, (ids, text)) in enumerate(zip(starts, committed, strict=True)):
            row = RowState(
                text=text,
                path=(),
                nodes={(): Node(together, i)},
                committed_slots=(),
                target_only_prefix=b"" if start.prefill else start.target_only_prefix,
                leading_whitespace=b"" if ids else start.leading_whitespace,
            )
            row, path = self._retokenize(row, start.prefill)
            rows.append(row)
            paths.append(path)
        self._states = {0: self._feed(rows, paths, MIN_PREFILL_LOGP)}  # by number of tokens written
        self._ids: dict[int, list[int | None]] = {}  # the tokens that led to each state but the first
        self._unfed: list[Path] | None = None  # by row, the anchor's tokens for the text as last written, until they are fed

    @property
    def rows(self) -> list[RowState]:
        """The rows at the current token."""
        self._feed_written({})
        return self._states[self.n_written]

    def go_back(self, n_written: int) -> bool:
        """Return to the state after this many tokens; False where it is not kept."""
        if n_written not in self._states:
            return False
        self._feed_written({})
        self.n_written, self._has_gone_back = n_written, True
        return True

    def write(self, ids: Sequence[int | None]) -> None:
        """Continue each row by one target token, None for a row that is not followed any more. The anchor is fed when next asked.

        An id without bytes leaves the text as it is; with equal vocabularies the anchor is fed it like any other.
        """
        n_written = self.n_written + 1
        if self._ids.get(n_written) != list(ids):
            rows, paths = zip(*(self._append(row, i) for row, i in zip(self.rows, ids, strict=True)), strict=True)
            if not self._has_gone_back:  # an answer that only grows needs no look-ahead of an earlier token
                self._states[self.n_written] = [self._prune(row) for row in self.rows]
            self._states = {n: state for n, state in self._states.items() if n_written - self._n_back <= n < n_written}
            self._states[n_written], self._unfed = list(rows), list(paths)
            self._ids = {n: before for n, before in self._ids.items() if n in self._states} | {n_written: list(ids)}
        self.n_written = n_written

    def predict(self, target_prob: Tensor, rows: Sequence[int]) -> Translation:
        """Predict the next token in the target's vocabulary, after the look-ahead that the rows need.

        The look-ahead feeds the anchor, and stays in the rows until the next token is written. `target_prob` (N, V) is the
        target's own distribution in these N rows; the result's `prob` (N, V) and `lost` (N,) sum to 1.
        """
        if self._identity:
            anchor_prob = torch.stack([self.rows[i].nodes[self.rows[i].path].prob for i in rows])
            return self._translator(anchor_prob.to(target_prob.device), target_prob)
        targets = dict(zip(rows, target_distributions(target_prob), strict=True))
        self._feed_written(targets)
        distributions = {i: CoverDistribution.canonical(self.rows[i], self._translator, target) for i, target in targets.items()}
        if self._look_ahead is not None:
            self._states[self.n_written] = self._look_ahead(self.rows, distributions)
        return marginal(list(distributions.values()), [self.rows[i] for i in distributions], target_prob)

    def translate_top(self, target_prob: Tensor, rows: Sequence[int], n_tokens: int) -> tuple[Tensor, Tensor]:
        """Translate the anchor's `n_tokens` likeliest tokens at the end of its path, as the paper does, by the translator's rule.

        `target_prob` (N, V) is the target's own distribution in these N rows. The result is the mass (N, V) of each target
        token, and the number of anchor tokens (N, V) that it comes from.
        """
        prob, n_sources = torch.zeros_like(target_prob), torch.zeros_like(target_prob)
        for n, i in enumerate(rows):
            row = self.rows[i]
            anchor_prob = row.nodes[row.path].prob.to(prob.device)[None]  # (1, A)
            values, ids = anchor_prob.topk(min(n_tokens, anchor_prob.shape[-1]))
            top = torch.zeros_like(anchor_prob).scatter(-1, ids, values)
            translate: Callable[..., Translation] = self._translator
            if not self._identity:
                pending = b"" if row.path else row.leading_whitespace
                translate = self._translator.table(pending, row.target_only_prefix).to(prob.device).apply_
            parts = top, (top > 0).float()
            prob[n], n_sources[n] = (translate(part, target_prob[n : n + 1]).prob[0] for part in parts)
        return prob, n_sources

    def select_rows(self, parents: Sequence[int]) -> None:
        """Continue row i from row `parents[i]`."""
        self.cache.select_rows(parents)
        self._states = {self.n_written: [self._states[self.n_written][i] for i in parents]}
        self._unfed = None if self._unfed is None else [self._unfed[i] for i in parents]
        self._ids = {}

    def _feed_written(self, targets: dict[int, TargetDistribution]) -> None:
        """Feed the anchor the tokens last written, and what a look-ahead will likely ask for by `targets`; commit old tokens."""
        if self._unfed is None:
            return
        rows, paths, self._unfed = self._states[self.n_written], self._unfed, None
        for condense in CONDENSERS if self._translator.rule == "bytes" else []:
            rows = condense(rows, self._translator)
        foreseen = {} if self._look_ahead is None else self._look_ahead.foresee(rows, paths, targets)
        rows = self._feed(rows, paths, foreseen=foreseen)
        self._states[self.n_written] = [self._commit(row) for row in rows]
        self._drop_unused_slots()

    def _append(self, row: RowState, i: int | None) -> tuple[RowState, Path]:
        """Append one target token to a row's text, and return the anchor's path for it."""
        tokens = self._translator.target.tokens
        if i is None or i >= len(tokens) or not (tokens[i] or self._identity):
            return row, row.path
        if self._identity:
            return row, (*row.path, i)
        data, prefix = tokens[i] or b"", row.target_only_prefix
        written = (*row.written, i)[-N_WORD_TOKENS:]
        if prefix.startswith(data):
            row = replace(row, written=written, target_only_prefix=prefix[len(data) :])
        else:
            row = replace(row, written=written, target_only_prefix=b"", text=row.text + data.removeprefix(prefix))
        return self._retokenize(row)

    def _retokenize(self, row: RowState, prefill: bytes = b"") -> tuple[RowState, Path]:
        """Return the anchor's path for a row's text, and the row without the text that the anchor has no tokens for.

        Where tokens are translated as they are (equal vocabularies, the paper's rules), the white space before an answer
        is not fed on its own.
        """
        if (self._identity and not prefill) or (self._translator.rule != "bytes" and row.text == row.leading_whitespace):
            return row, ()
        anchor = self._translator.anchor
        path = anchor.encode(row.text)
        if anchor.decode(path) != row.text:
            n_whole = complete_characters(row.text)
            row = replace(row, text=anchor.decode(anchor.encode(row.text[:n_whole])) + row.text[n_whole:])
        return row, self._partial_character(row) or path

    def _partial_character(self, row: RowState) -> Path | None:
        """Where the text ends inside a character: the likeliest path whose last token holds all the pending bytes, if any."""
        if complete_characters(row.text) == len(row.text) or self._translator.rule != "bytes":
            return None
        anchor = self._translator.anchor
        best: tuple[float, Path | None] = (MIN_TOKEN_LOGP, None)
        for path, node in row.nodes.items():
            i = anchor.by_bytes.get(row.text[len(node.text) :]) if row.text.startswith(node.text) else None
            if i is not None:
                best = max(best, (node.path_logp + node.logp_of(i), (*path, i)), key=lambda pair: pair[0])
        return best[1]

    def _feed(
        self,
        rows: Sequence[RowState],
        paths: Sequence[Path],
        min_logp: float = MIN_TOKEN_LOGP,
        foreseen: Mapping[int, Sequence[Path]] = MappingProxyType({}),
    ) -> list[RowState]:
        """Move each row to a path: feed the anchor its tokens that are not in the cache, and prune the other branches.

        The last token of each foreseen path is fed with them, and stays until the next token is written.
        """
        n_fed = [max(n for n in range(len(path) + 1) if path[:n] in row.nodes) for row, path in zip(rows, paths, strict=True)]
        if not any(len(path) > n for path, n in zip(paths, n_fed, strict=True)):
            return [self._prune(replace(row, path=path)) for row, path in zip(rows, paths, strict=True)]
        slot, width = self.cache.n_slots, max(len(path) - n for path, n in zip(paths, n_fed, strict=True))
        chains, leaves, points = [], [], []
        for i, (row, path, n) in enumerate(zip(rows, paths, n_fed, strict=True)):
            slots = row.slots(path[:n])
            chains.append(Append(path[n:], slots))
            slots = [*slots, *range(slot, slot + len(path) - n)]
            new = [each for each in foreseen.get(i, ()) if each not in row.nodes]
            leaves.append([Leaf(each[-1], slots if each[:-1] == path else row.slots(each[:-1])) for each in new])
            points.append([(path[: n + k + 1], slot + k) for k in range(len(path) - n)])
            points[i] += [(each, slot + width + k) for k, each in enumerate(new)]
        after = self.cache.append(chains, leaves)
        together, tokens = Distributions(after.prob), self._translator.anchor.tokens
        fed = [row.with_points(points[i], together, after.first[i], tokens, min_logp) for i, row in enumerate(rows)]
        pruned = [self._prune(replace(row, path=path)) for row, path in zip(fed, paths, strict=True)]
        return [
            replace(row, nodes=row.nodes | {each: fed[i].nodes[each] for each in foreseen.get(i, ()) if each in fed[i].nodes})
            for i, row in enumerate(pruned)
        ]

    def _prune(self, row: RowState) -> RowState:
        """Keep the points within a row's text."""
        nodes = {
            path: node
            for path, node in row.nodes.items()
            if path == row.path[: len(path)] or (not self._identity and row.text.startswith(node.text))
        }
        return replace(row, nodes=nodes)

    def _commit(self, row: RowState) -> RowState:
        """Commit the older half of a long row's tokens: a batch keeps all its probabilities of each position not committed."""
        is_long = len(row.path) > (MAX_UNCOMMITTED_EQUAL if self._identity else MAX_UNCOMMITTED)
        if not is_long or not (n_tokens := len(row.path) // 2 if self._identity else self._n_committable(row)):
            return row
        head = row.path[:n_tokens]
        n_bytes, head_logp = len(row.nodes[head].text), row.nodes[head].path_logp
        kept = {path[n_tokens:]: node for path, node in row.nodes.items() if path[:n_tokens] == head}
        return replace(
            row,
            text=row.text if self._identity else row.text[n_bytes:],
            path=row.path[n_tokens:],
            nodes={p: replace(node, path_logp=node.path_logp - head_logp, text=node.text[n_bytes:]) for p, node in kept.items()},
            committed_slots=tuple(row.slots(head)),
            leading_whitespace=b"",
        )

    def _n_committable(self, row: RowState) -> int:
        """Return how many tokens come before the last word of the older half that is tokenized the same on its own."""
        anchor, n_bytes, n_tokens = self._translator.anchor, 0, 0
        for n, i in enumerate(row.path[: MAX_UNCOMMITTED // 2], start=1):
            n_bytes += len(anchor.tokens[i] or b"")
            tail = row.text[n_bytes:]
            if _begins_word(tail) and anchor.encode(tail) == row.path[n:]:
                n_tokens = n
        return n_tokens or (MAX_UNCOMMITTED // 2 if len(row.path) > 4 * MAX_UNCOMMITTED else 0)

    def _drop_unused_slots(self) -> None:
        """Drop the cache slots of pruned points, once there are many."""
        rows = [row for state in self._states.values() for row in state]
        nodes = [node for row in rows for node in row.nodes.values()]
        used = {slot for row in rows for slot in row.committed_slots} | {node.slot for node in nodes if node.slot is not None}
        if self.cache.n_slots - self._n_prompt_slots - len(used) > MAX_UNUSED_SLOTS:
            new_slots = self.cache.drop_unused_slots(used)
            self._states = {n: [row.with_slots(new_slots) for row in state] for n, state in self._states.items()}


def _commit_prefill(start: RowStart, translator: VocabularyTranslator) -> tuple[Path, bytes]:
    """Split a prefill before its last words: the anchor's tokens to commit, and the text that stays uncommitted."""
    anchor = translator.anchor
    text = start.leading_whitespace + start.prefill
    ids = anchor.encode(text)
    head: Path = ()
    n_bytes, tail = 0, text
    for n, i in enumerate(ids[:-MIN_UNCOMMITTED_PREFILL], start=1):
        n_bytes += len(anchor.tokens[i] or b"")
        if _begins_word(text[n_bytes : n_bytes + 2]):
            head, tail = ids[:n], text[n_bytes:]
    return (head, tail) if anchor.encode(tail) == ids[len(head) :] else ((), text)


def _begins_word(tail: bytes) -> bool:
    return tail[:1] == b" " and bool(tail[1:2].strip())
