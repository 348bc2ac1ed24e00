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
from itertools import islice
from typing import NamedTuple, cast

import torch
from torch import Tensor

from hf_alignbeam.anchor.cover import Cover, OpenPath, TrackedToken
from hf_alignbeam.anchor.state import MIN_TOKEN_LOGP, Node, Pairs, Path, RowState
from hf_alignbeam.translation.translator import AS_IS_WEIGHT, Table, Translation, VocabularyTranslator
from hf_alignbeam.utils.largest import largest

#: The target's tokens are taken as canonical while this keeps more than such a share of the anchor's mass.
MIN_CANONICAL_SHARE = 0.05
#: Anchor tokens of more mass than this are tracked one by one, and their paths are worth a look-ahead.
MIN_TRACKED_MASS = 0.01
#: A point inside the text counts with at least this log-probability of a token that begins there, against the likeliest point.
MIN_COVER_LOGP = math.log(1e-4)
#: Next tokens inside the text count with at least this share of the likeliest one's mass.
MIN_TOKEN_PROB = math.exp(MIN_TOKEN_LOGP)
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


class TargetDistribution(NamedTuple):
    """The target's own distribution (V,) of one row's next token, and its `N_TARGET_TOKENS` likeliest tokens, in order."""

    prob: Tensor
    likeliest: list[tuple[int, float]]


def target_distributions(prob: Tensor) -> list[TargetDistribution]:
    """The distribution of each row of `prob` (N, V)."""
    values, ids = largest(prob, N_TARGET_TOKENS)
    pairs = [list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TargetDistribution(*each) for each in zip(prob, pairs, strict=True)]


def _heavy_tokens(cover: Cover) -> Iterator[TrackedToken]:
    """The likeliest next tokens of a cover, those with enough mass to be tracked."""
    if cover.table is None:
        inside = zip(cover.ids[:MAX_TRACKED], cover.masses, cover.next_tokens, strict=False)
        return (TrackedToken(i, mass, t >= 0) for i, mass, t in inside if mass > MIN_TRACKED_MASS)
    likeliest = islice(cover.node.likeliest.items(), MAX_TRACKED)
    return (TrackedToken(i, cover.weight * prob, True) for i, prob in likeliest if cover.weight * prob > MIN_TRACKED_MASS)


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
            for token in distribution.tracked[cover.path]:
                kept += token.mass * distribution._canonical_share((token.id,), cover)
                kept -= token.mass if token.is_canonical else 0.0
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
        row = self.row
        points = [(path, node, row.text[len(node.text) :]) for path, node in row.nodes.items() if row.text.startswith(node.text)]
        if self.translator.rule != "bytes":
            points = [point for point in points if point[0] == row.path]
        begins_a_token = self.translator.anchor.begins_a_token
        points = [point for point in points if self._is_at_end(point[2]) or begins_a_token(point[2])]
        most_logp = [self._most_logp(path, node) for path, node, _ in points]
        least = max(most_logp, default=0.0) + MIN_COVER_LOGP
        points = [point for point, most in zip(points, most_logp, strict=True) if most > least]
        best = max((node.path_logp for _, node, _ in points), default=0.0)
        weights = [math.exp(node.path_logp - best) for _, node, _ in points]
        heaviest = [weight * self._heaviest(node, left) for weight, (_, node, left) in zip(weights, points, strict=True)]
        min_mass = max(heaviest, default=0.0) * MIN_TOKEN_PROB
        return [
            self._cover(*point, weight, min_mass)
            for point, weight, most in zip(points, weights, heaviest, strict=True)
            if most > min_mass
        ]

    def _most_logp(self, path: Path, node: Node) -> float:
        """Return a bound on the log-probability with which the anchor leaves the row's path at one of its points."""
        n_tokens = len(path)
        if n_tokens == len(self.row.path) or path != self.row.path[:n_tokens]:
            return node.path_logp
        following = self.row.nodes.get(self.row.path[: n_tokens + 1])
        if following is None:
            return node.path_logp
        return node.path_logp + math.log(max(-math.expm1(following.path_logp - node.path_logp), TINY))

    def _is_at_end(self, pending: bytes) -> bool:
        return not pending or pending == self.row.leading_whitespace == self.row.text

    def _heaviest(self, node: Node, pending: bytes) -> float:
        """The probability of the likeliest next token at a point."""
        return next(iter(node.likeliest.values())) if self._is_at_end(pending) else self._completions(node, pending)[1][0]

    def _completions(self, node: Node, pending: bytes) -> Pairs:
        """The likeliest anchor tokens that begin with the pending bytes, with their probabilities."""
        known = node.completions.get(pending)
        if known is None:
            ids = self.translator.retokenizer.completions(pending).to(node.together.prob.device)
            known = node.completions[pending] = node.largest_of(ids, MAX_COMPLETIONS)
        return known

    def _cover(self, path: Path, node: Node, pending: bytes, weight: float, min_mass: float) -> Cover:
        """Build a cover with every token that may come next, but no completions of less mass than `min_mass`."""
        prefix, retokenizer = self.row.target_only_prefix, self.translator.retokenizer
        if self._is_at_end(pending):
            return Cover(path, pending, node, weight, self.translator.table(pending, prefix))
        ids, probs = self._completions(node, pending)
        masses = [weight * prob for prob in probs if weight * prob > min_mass]
        heavy = ids[: len(masses)]
        return Cover(path, pending, node, weight, None, heavy, masses, retokenizer.next_tokens(heavy, pending, prefix, self.word))

    def cover_at_end(self, path: Path) -> Cover:
        """Return the cover at the end of a path that the anchor was not fed: what may come next there, without its mass."""
        return Cover(path, b"", self.row.nodes[()], 1.0, self.translator.table(b"", self.row.target_only_prefix))

    @cached_property
    def tracked(self) -> dict[Path, list[TrackedToken]]:
        """By the path of each cover, the next tokens that are tracked one by one."""
        if self.translator.rule != "bytes":
            return {cover.path: [] for cover in self.covers}
        return {cover.path: [token for token in _heavy_tokens(cover) if self._is_longer(token, cover)] for cover in self.covers}

    def _is_longer(self, token: TrackedToken, cover: Cover) -> bool:
        tokens = self.translator.anchor.tokens
        data = (tokens[token.id] or b"") if token.id < len(tokens) else b""
        return data.startswith(cover.pending) and data != cover.pending

    def open_paths(self) -> list[OpenPath]:
        """Return the open paths of one tracked token."""
        return [
            path
            for cover in self.covers
            for path in self._open(cover, (), [(token.id, token.mass) for token in self.tracked[cover.path]])
        ]

    def open_after(self, path: OpenPath, node: Node) -> list[OpenPath]:
        """Return the open paths that are one token longer than `path`, which was fed up to `node`."""
        tokens = self.translator.anchor.tokens
        likeliest = [(i, path.mass * prob) for i, prob in islice(node.likeliest.items(), MAX_TRACKED)]
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
        for i, prob in node.likeliest.items():
            value = mass * prob
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
    width = target_prob.shape[-1]
    by_table: dict[int, list[TabledCover]] = defaultdict(list)
    ids: list[int] = []  # of target tokens in all rows one after the other, each with a mass of its own
    masses: list[float] = []
    shares: list[tuple[int, Sequence[int], float]] = []
    for n, (distribution, row) in enumerate(zip(distributions, rows, strict=True)):
        for cover in distribution.covers:
            tracked = {token.id: token.mass for token in distribution.tracked[cover.path]}
            for i, mass in tracked.items():
                shares += [(n, *share) for share in distribution.shares((i,), cover, mass, row.nodes) if share[0]]
            if cover.table is not None:
                by_table[id(cover.table)].append(TabledCover(n, cover, list(tracked)))
                continue
            for i, mass, t in zip(cover.ids, cover.masses, cover.next_tokens, strict=True):
                if t >= 0 and i not in tracked:
                    ids.append(n * width + t)
                    masses.append(mass)
    result = None
    for group in sorted(by_table.values(), key=len, reverse=True):
        result = _with_table(result, group, target_prob)
    result = result or _nothing(target_prob)
    flat = result.prob.view(-1)
    flat.index_add_(0, torch.tensor(ids, dtype=torch.long, device=flat.device), flat.new_tensor(masses))
    _add_shares(flat, shares, target_prob)
    return result


class TabledCover(NamedTuple):
    """The number of a row, a cover of it with a table, and the cover's tracked tokens."""

    n: int
    cover: Cover
    tracked: list[int]


def _nothing(target_prob: Tensor) -> Translation:
    return Translation(torch.zeros_like(target_prob), target_prob.new_zeros(len(target_prob)))


def _with_table(so_far: Translation | None, group: Sequence[TabledCover], target_prob: Tensor) -> Translation:
    """Add the tokens that are not tracked of covers with one table."""
    covers, rows, device = [each.cover for each in group], [each.n for each in group], target_prob.device
    together = covers[0].node.together
    if all(cover.node.together is together for cover in covers):
        rest = together.prob[[cover.node.index for cover in covers]]  # (M, A)
    else:
        rest = torch.stack([cover.node.prob for cover in covers])
    tracked = [(m, i) for m, each in enumerate(group) for i in each.tracked]
    if tracked:
        rest[torch.tensor(tracked, device=rest.device).unbind(-1)] = 0.0
    is_whole = rows == list(range(len(target_prob)))
    part = cast(Table, covers[0].table).to(device).apply_(rest.to(device), target_prob if is_whole else target_prob[rows])
    weights = part.lost.new_tensor([cover.weight for cover in covers])
    part = Translation(part.prob.mul_(weights[:, None]), part.lost * weights)
    if is_whole and so_far is None:
        return part
    so_far, index = so_far or _nothing(target_prob), torch.tensor(rows, device=device)
    return Translation(so_far.prob.index_add_(0, index, part.prob), so_far.lost.index_add_(0, index, part.lost))


def _add_shares(flat: Tensor, shares: Sequence[tuple[int, Sequence[int], float]], target_prob: Tensor) -> None:
    """Divide each mass among its row's target tokens by the target's own distribution, with a bonus for the first token.

    `flat` (N * V,) are the masses so far.
    """
    width, device, dtype = target_prob.shape[-1], flat.device, flat.dtype
    ids = torch.tensor([n * width + t for n, tokens, _ in shares for t in tokens], dtype=torch.long, device=device)
    group = torch.tensor([g for g, (_, tokens, _) in enumerate(shares) for _ in tokens], dtype=torch.long, device=device)
    first = torch.tensor([k == 0 for _, tokens, _ in shares for k in range(len(tokens))], dtype=dtype, device=device)
    masses = torch.tensor([mass for _, _, mass in shares], dtype=dtype, device=device)
    weights = target_prob.reshape(-1)[ids]
    weights = weights + first * (AS_IS_WEIGHT * _group_sums(weights, group, len(shares))[group] + TINY)
    flat.index_add_(0, ids, weights * (masses / _group_sums(weights, group, len(shares)))[group])


def _group_sums(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """(G,) the sum of the values (M,) of each group."""
    return values.new_zeros(n_groups).index_add_(0, group, values)
