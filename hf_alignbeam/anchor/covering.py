"""The anchor's next-token distribution in the target's vocabulary: a marginal over the anchor's tokenizations of the text.

Byte-exact prediction sums over every tokenization that covers the text (arXiv 2506.14123); here these are the tokens that
were fed and the paths that were looked ahead to. Knows rows, both vocabularies and the target's own distribution. Feeds no
model: where only another forward of the anchor can tell which target token comes next, it names the path (`open_paths`).
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor

from hf_alignbeam.anchor.cover import Cover, OpenPath, TrackedToken
from hf_alignbeam.anchor.state import MIN_TOKEN_LOGP, Node, Path, RowState
from hf_alignbeam.translation.translator import AS_IS_WEIGHT, Table, Translation, VocabularyTranslator

#: The target's tokens are taken as canonical while this keeps more than such a share of the anchor's mass.
MIN_CANONICAL_SHARE = 0.05
#: Anchor tokens of more mass than this are tracked one by one, and their paths are worth a look-ahead.
MIN_TRACKED_MASS = 0.01
#: A point inside the text counts with at least this log-probability of a token that begins there, against the likeliest point.
MIN_COVER_LOGP = math.log(1e-4)
#: At most this many tokens are tracked at one point.
MAX_TRACKED = 12
#: A look-ahead is worth a forward where more mass than this may go to another token than the one that gets it without.
MIN_UNCERTAIN_MASS = 0.05
#: After a looked-ahead path, next tokens of more mass than this are tracked one by one; the others count as the path does.
MIN_BRANCH_MASS = 0.001
#: This many of the likeliest anchor tokens that complete pending bytes count; the others are noise.
MAX_COMPLETIONS = 256
#: This many of the target's likeliest tokens are tried as what an anchor path may become.
N_TARGET_TOKENS = 8
#: Keeps shares defined where the target gives all candidates a probability of zero.
TINY = 1e-30

_NONE = torch.empty(0, dtype=torch.long)


class TargetDistribution(NamedTuple):
    """The target's own distribution (V,) of one row's next token, and its `N_TARGET_TOKENS` likeliest tokens, in order."""

    prob: Tensor
    likeliest: list[tuple[int, float]]


def target_distributions(prob: Tensor) -> list[TargetDistribution]:
    """The distribution of each row of `prob` (N, V)."""
    values, ids = prob.topk(min(N_TARGET_TOKENS, prob.shape[-1]))
    pairs = [list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TargetDistribution(*each) for each in zip(prob, pairs, strict=True)]


@dataclass(frozen=True)
class CoverDistribution:
    """One row's next-token distribution as covers, given the target's tokens so far.

    Attributes:
        row: The row.
        translator: Between the two vocabularies.
        target: The target's own distribution.
        word: The target's tokens since its last word began. Only text for which they are canonical counts; empty where
            every tokenization of their bytes counts.
    """

    row: RowState
    translator: VocabularyTranslator
    target: TargetDistribution
    word: Path

    @classmethod
    def canonical(cls, row: RowState, translator: VocabularyTranslator, target: TargetDistribution) -> "CoverDistribution":
        """Take the target's tokens as canonical, unless that rules out nearly all of the anchor's mass."""
        if translator.rule != "bytes":
            return cls(row, translator, target, ())
        distribution = cls(row, translator, target, current_word(row, translator))
        if not distribution.word:
            return distribution
        kept = 0.0
        for cover in distribution.covers:
            kept += cover.mass - cover.noncanonical_mass
            for token in distribution.tracked(cover):
                kept += token.mass * distribution._canonical_share((token.id,), cover)
                kept -= token.mass if cover.table is not None or int(cover.next_tokens[token.column]) >= 0 else 0.0
        return distribution.or_unconditional(kept)

    def or_unconditional(self, kept: float) -> "CoverDistribution":
        """Return this distribution, or one of every tokenization where this one keeps next to nothing of the mass."""
        return self if not self.word or kept > MIN_CANONICAL_SHARE * self._mass else replace(self, word=())

    @cached_property
    def _mass(self) -> float:
        return sum(cover.mass for cover in self.covers)

    @cached_property
    def covers(self) -> list[Cover]:
        """The points from which the anchor may continue: the end of its path, and where a longer token may begin."""
        row, anchor = self.row, self.translator.anchor
        texts = {path: anchor.decode(path) for path in row.nodes}
        pending = {path: row.text[len(text) :] for path, text in texts.items() if row.text.startswith(text)}
        if self.translator.rule != "bytes":
            pending = {row.path: pending[row.path]}
        pending = {path: left for path, left in pending.items() if self._is_at_end(left) or anchor.begins_a_token(left)}
        most_logp = {path: self._most_logp(path) for path in pending}
        least = max(most_logp.values(), default=0.0) + MIN_COVER_LOGP
        pending = {path: left for path, left in pending.items() if most_logp[path] > least}
        best = max((row.nodes[path].path_logp for path in pending), default=0.0)
        covers = [self._cover(path, left, row.nodes[path].path_logp - best) for path, left in pending.items()]
        min_logp = max((cover.max_logp for cover in covers), default=0.0) + MIN_TOKEN_LOGP
        return [self._with_next_tokens(cover, min_logp) for cover in covers if cover.max_logp > min_logp]

    def _most_logp(self, path: Path) -> float:
        """Return a bound on the log-probability with which the anchor leaves the row's path at one of its points."""
        node, following = self.row.nodes[path], self.row.nodes.get(self.row.path[: len(path) + 1])
        if following is None or path != self.row.path[: len(path)] or path == self.row.path:
            return node.path_logp
        return node.path_logp + math.log(max(-math.expm1(following.path_logp - node.path_logp), TINY))

    def _is_at_end(self, pending: bytes) -> bool:
        return not pending or pending == self.row.leading_whitespace == self.row.text

    def _cover(self, path: Path, pending: bytes, path_logp: float) -> Cover:
        """Build a cover with every token that may come next, and without the target tokens of completions."""
        node = self.row.nodes[path]
        if self._is_at_end(pending):
            table = self.translator.table(pending, self.row.target_only_prefix)
            return Cover(path, pending, node, path_logp, table, _NONE, _NONE)
        ids = self.translator.retokenizer.completions(pending).to(node.logp.device)
        return Cover(path, pending, node, path_logp, None, ids, _NONE)

    def cover_at_end(self, path: Path) -> Cover:
        """Return the cover at the end of a path that the anchor was not fed: what may come next there, without its mass."""
        return Cover(path, b"", self.row.nodes[()], 0.0, self.translator.table(b"", self.row.target_only_prefix), _NONE, _NONE)

    def _with_next_tokens(self, cover: Cover, min_logp: float) -> Cover:
        """Keep the likeliest completions, none below `min_logp`, and add the target's next token for each."""
        if cover.table is not None:
            return cover
        values, indices = cover.node.logp[cover.ids].topk(min(MAX_COMPLETIONS, len(cover.ids)))
        ids = cover.ids[indices[values + cover.path_logp > min_logp]]
        tokens = self.translator.retokenizer.next_tokens(ids.tolist(), cover.pending, self.row.target_only_prefix, self.word)
        return replace(cover, ids=ids, next_tokens=torch.tensor(tokens, dtype=torch.long, device=ids.device))

    def tracked(self, cover: Cover) -> list[TrackedToken]:
        """Return the next tokens of a cover that are tracked one by one."""
        if self.translator.rule != "bytes":
            return []
        if cover.table is not None:
            likeliest = [TrackedToken(i, i, math.exp(logp + cover.path_logp)) for i, logp in cover.node.likeliest[:MAX_TRACKED]]
        else:
            values, indices = cover.prob.topk(min(MAX_TRACKED, len(cover.prob)))
            triples = zip(indices.tolist(), cover.ids[indices].tolist(), values.tolist(), strict=True)
            likeliest = [TrackedToken(*triple) for triple in triples]
        tokens, pending = self.translator.anchor.tokens, cover.pending
        heavy = [token for token in likeliest if token.mass > MIN_TRACKED_MASS and token.id < len(tokens)]
        return [token for token in heavy if (data := tokens[token.id] or b"").startswith(pending) and data != pending]

    def open_paths(self) -> list[OpenPath]:
        """Return the open paths of one tracked token."""
        return [
            path
            for cover in self.covers
            for path in self._open(cover, (), [(token.id, token.mass) for token in self.tracked(cover)])
        ]

    def open_after(self, path: OpenPath, node: Node) -> list[OpenPath]:
        """Return the open paths that are one token longer than `path`, which was fed up to `node`."""
        tokens = self.translator.anchor.tokens
        likeliest = [(i, path.mass * math.exp(logp)) for i, logp in node.likeliest[:MAX_TRACKED]]
        heavy = [(i, mass) for i, mass in likeliest if mass > MIN_TRACKED_MASS and i < len(tokens) and tokens[i]]
        return self._open(path.cover, path.ids, heavy)

    def _open(self, cover: Cover, ids: Path, following: Sequence[tuple[int, float]]) -> list[OpenPath]:
        """Return the open paths among `ids` with each of the following tokens, given with their mass."""
        paths = [OpenPath(mass, mass * self.uncertainty((*ids, i), cover, mass), (*ids, i), cover) for i, mass in following]
        return [path for path in paths if path.uncertain_mass > MIN_BRANCH_MASS]

    def uncertainty(self, ids: Path, cover: Cover, mass: float) -> float:
        """Return the share of a path's mass that may go to another token than its likeliest, or to none.

        All of it where that token goes on beyond the path's text: what the anchor has only begun, the target must not complete.
        """
        canonical_share = self._canonical_share(ids, cover)
        candidates = self._candidates(ids, cover, mass)
        if not canonical_share:
            return 0.0
        if len(candidates) < 2:
            return 1.0 - canonical_share
        weights = self.target.prob[candidates].tolist()
        weights[0] += AS_IS_WEIGHT * sum(weights) + TINY
        likeliest = max(range(len(weights)), key=weights.__getitem__)
        n_bytes = len(self.row.target_only_prefix) + len(self.translator.anchor.decode(ids)) - len(cover.pending)
        if len(self.translator.target.tokens[candidates[likeliest]] or b"") > n_bytes:
            return 1.0
        return 1.0 - canonical_share * weights[likeliest] / sum(weights)

    def _candidates(self, ids: Path, cover: Cover, mass: float) -> list[int]:
        """Return the target's possible next tokens for a path of anchor tokens, that of its text as it is first.

        Empty where the target's tokens so far are not canonical. A path of little mass counts as its text is.
        """
        retokenizer, prefix = self.translator.retokenizer, self.row.target_only_prefix
        if mass <= MIN_TRACKED_MASS:
            text = prefix + self.translator.anchor.decode(ids)[len(cover.pending) :]
            token = retokenizer.next_token(text, self.word)
            return [] if token is None else [token]
        within = retokenizer.first_tokens(ids, cover.pending, prefix, self.word).tokens
        longer = [t for t, _ in self.target.likeliest if retokenizer.can_become(ids, t, cover.pending, prefix)]
        if cover.table is not None:
            longer += cover.table.extensions.get(ids, ())
        return list(dict.fromkeys((*within, *retokenizer.canonical(tuple(longer), self.word))))

    def _canonical_share(self, ids: Path, cover: Cover) -> float:
        """Return the share of a path's continuations for which the target's tokens so far are canonical."""
        if not self.word:
            return 1.0
        first_tokens = self.translator.retokenizer.first_tokens(ids, cover.pending, self.row.target_only_prefix, self.word)
        return first_tokens.canonical_share

    def shares(self, ids: Path, cover: Cover, mass: float, nodes: Mapping[Path, Node]) -> Iterator[tuple[Sequence[int], float]]:
        """Divide the mass of a path of anchor tokens among groups of the target's next tokens.

        After a looked-ahead path, the anchor's next tokens decide; elsewhere the target's own distribution over the tokens
        that the path may become. `nodes` are the row's points, with those that were looked ahead to.
        """
        node = nodes.get(cover.path + ids)
        if node is None:
            share = self._canonical_share(ids, cover) if mass > MIN_TRACKED_MASS else 1.0
            yield self._candidates(ids, cover, mass), mass * share
            return
        tokens = self.translator.anchor.tokens
        left = mass
        for i, logp in node.likeliest:
            value = mass * math.exp(logp)
            if value > MIN_BRANCH_MASS and i < len(tokens) and tokens[i]:
                yield from self.shares((*ids, i), cover, value, nodes)
                left -= value
        yield self._candidates(ids, cover, 0.0), max(left, 0.0)


def current_word(row: RowState, translator: VocabularyTranslator) -> Path:
    """Return the target's tokens from the last one on that begins with white space; empty where none is known."""
    tokens = translator.target.tokens
    starts = [n for n, i in enumerate(row.written) if (tokens[i] or b"")[:1].isspace()]
    return row.written[starts[-1] :] if starts else ()


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
    prob, lost = torch.zeros_like(target_prob), target_prob.new_zeros(len(target_prob))
    by_table: dict[int, list[tuple[int, Cover, list[int]]]] = defaultdict(list)
    shares: list[tuple[int, Sequence[int], float]] = []
    for n, (distribution, row) in enumerate(zip(distributions, rows, strict=True)):
        for cover in distribution.covers:
            tracked = distribution.tracked(cover)
            for token in tracked:
                shares += [(n, *share) for share in distribution.shares((token.id,), cover, token.mass, row.nodes)]
            columns = [token.column for token in tracked]
            if cover.table is not None:
                by_table[id(cover.table)].append((n, cover, columns))
            else:
                _add_completions(prob[n], cover, columns)
    for group in by_table.values():
        _add_through_table(prob, lost, group, target_prob)
    _add_shares(prob, shares, target_prob)
    return Translation(prob, lost)


def _add_completions(prob: Tensor, cover: Cover, tracked: list[int]) -> None:
    """Add a cover's completions that are not tracked to its row's `prob` (V,)."""
    rest = cover.prob.clone()
    rest[tracked] = 0.0
    is_canonical = cover.next_tokens >= 0
    prob.index_add_(0, cover.next_tokens[is_canonical].to(prob.device), rest[is_canonical].to(prob.device))


def _add_through_table(prob: Tensor, lost: Tensor, group: Sequence[tuple[int, Cover, list[int]]], target_prob: Tensor) -> None:
    """Add the tokens that are not tracked of covers with one table: the row, the cover and the tracked tokens of each."""
    rows = torch.tensor([n for n, _, _ in group], device=prob.device)
    path_logp = torch.tensor([cover.path_logp for _, cover, _ in group], device=prob.device)
    logp = torch.stack([cover.node.logp for _, cover, _ in group]).to(prob.device)
    rest = logp.add_(path_logp[:, None]).exp_()  # (M, A)
    for row, (_, _, tracked) in zip(rest, group, strict=True):
        row[tracked] = 0.0
    table = cast(Table, group[0][1].table).to(prob.device)
    part = table.apply(rest, target_prob if len(group) == len(target_prob) else target_prob[rows])
    prob.index_add_(0, rows, part.prob)
    lost.index_add_(0, rows, part.lost)


def _add_shares(prob: Tensor, shares: Sequence[tuple[int, Sequence[int], float]], target_prob: Tensor) -> None:
    """Divide each mass among its row's target tokens by the target's own distribution, with a bonus for the first token."""
    groups = [(n, tokens, mass) for n, tokens, mass in shares if tokens]
    width = prob.shape[-1]
    ids = torch.tensor([n * width + t for n, tokens, _ in groups for t in tokens], dtype=torch.long, device=prob.device)
    group = torch.tensor([g for g, (_, tokens, _) in enumerate(groups) for _ in tokens], dtype=torch.long, device=prob.device)
    first = torch.tensor([k == 0 for _, tokens, _ in groups for k in range(len(tokens))], dtype=prob.dtype, device=prob.device)
    masses = torch.tensor([mass for _, _, mass in groups], dtype=prob.dtype, device=prob.device)
    weights = target_prob.reshape(-1)[ids]
    weights = weights + first * (AS_IS_WEIGHT * _group_sums(weights, group, len(groups))[group] + TINY)
    prob.view(-1).index_add_(0, ids, weights * (masses / _group_sums(weights, group, len(groups)))[group])


def _group_sums(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """(G,) the sum of the values (M,) of each group."""
    return values.new_zeros(n_groups).index_add_(0, group, values)
