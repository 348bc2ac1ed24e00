"""The anchor's next-token distribution in the target's vocabulary: a marginal over the anchor's tokenizations of the text.

Byte-exact prediction sums over every tokenization that covers the text (arXiv 2506.14123); here these are the tokens that
were fed and the paths that were looked ahead to. Knows rows, both vocabularies and the target's own distribution. Feeds no
model: where only another forward of the anchor can tell which target token comes next, it names the path (`open_paths`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

from torch import Tensor

from hf_alignbeam.anchor.cover import Cover, CoverPath, OpenPath
from hf_alignbeam.anchor.state import Node, Path, RowState, largest
from hf_alignbeam.translation.translator import AS_IS_WEIGHT, NEGLIGIBLE, VocabularyTranslator

#: The target's tokens are taken as canonical while this keeps more than such a share of the anchor's mass.
MIN_CANONICAL_SHARE = 0.01
#: Anchor tokens of more mass than this are tracked one by one, and their paths are worth a look-ahead.
MIN_TRACKED_MASS = 0.01
#: A point inside the text counts where a token begins with more than this log-probability, against that of the whole text.
MIN_COVER_LOGP = math.log(1e-4)
#: Completions of less mass than this share of the likeliest one's are left out.
MIN_COMPLETION_SHARE = 1e-6
#: At most this many tokens are tracked at one point.
MAX_TRACKED = 12
#: A look-ahead is worth a forward where more mass than this may go to another token than the one that gets it without.
MIN_UNCERTAIN_MASS = 0.05
#: Where the target's probabilities are below this one, it has no opinion on which of its tokens a path becomes.
LEAST_OPINION = 1e-5
#: After a looked-ahead path, next tokens of more mass than this are tracked one by one; the others count as the path does.
MIN_BRANCH_MASS = 0.001
#: This many of the likeliest anchor tokens that complete pending bytes count; the others are noise.
MAX_COMPLETIONS = 256
#: This many of the target's likeliest tokens are tried as what an anchor path may become.
N_TARGET_TOKENS = 8
#: Read for all rows at once what they will look up. The installed package has one, the folder of the processor alone none.
READERS: list[Callable[[Sequence[tuple["CoverDistribution", Path, Cover, float]]], None]] = []


@dataclass(frozen=True)
class TargetDistribution:
    """The target's own distribution of one row's next token.

    Attributes:
        together: (N, V) the distributions of all rows.
        index: The number of the row.
        likeliest: Its `N_TARGET_TOKENS` likeliest tokens, in order.
        known: The probabilities that were read so far; at first those of `likeliest`.
        candidates: What a path of anchor tokens may become, by the path, the bytes pending before it and the current word.
    """

    together: Tensor
    index: int
    likeliest: Sequence[int]
    known: dict[int, float]
    candidates: dict[tuple[Path, bytes, Path], list[int]] = field(default_factory=dict)

    def probs(self, tokens: Sequence[int]) -> list[float]:
        """The probability of each token."""
        if new := [t for t in tokens if t not in self.known]:
            self.known.update(zip(new, self.together[self.index, new].tolist(), strict=True))
        return [self.known[t] for t in tokens]


def target_distributions(prob: Tensor) -> list[TargetDistribution]:
    """The distribution of each row of `prob` (N, V)."""
    return [TargetDistribution(prob, n, list(known), known) for n, known in enumerate(largest(prob, N_TARGET_TOKENS))]


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
        kept = sum(cover.canonical_mass for cover in distribution.covers)
        for ids, cover, mass in distribution.tracked_paths():
            counted = cover.next_tokens.get(ids[0], 0) >= 0  # `canonical_mass` has counted all of it, or none
            kept += mass * (distribution._canonical_share(ids, cover) - counted)
        return distribution.or_unconditional(kept)

    def or_unconditional(self, kept: float) -> "CoverDistribution":
        """Return this distribution, or one of every tokenization where this one keeps next to nothing of the mass."""
        is_enough = not self.word or kept > MIN_CANONICAL_SHARE * sum(cover.mass for cover in self.covers)
        return self if is_enough else replace(self, word=())

    @cached_property
    def covers(self) -> list[Cover]:
        """The points from which the anchor may continue: the end of its path, and where a longer token may begin."""
        row = self.row
        nodes = row.nodes if self.translator.rule == "bytes" else {row.path: row.nodes[row.path]}
        points = [(path, node, row.text[len(node.text) :]) for path, node in nodes.items() if row.text.startswith(node.text)]
        least = max((node.path_logp for _, node, rest in points if self.row.is_at_end(rest)), default=-math.inf) + MIN_COVER_LOGP
        begins = self.translator.anchor.begins_a_token
        points = [p for p in points if self.row.is_at_end(p[2]) or (begins(p[2]) and self._most_logp(*p[:2]) > least)]
        best = max((node.path_logp for _, node, _ in points), default=0.0)
        weights = [math.exp(node.path_logp - best) for _, node, _ in points]
        heaviest = [w * next(iter(self._likeliest(*point[1:]).values())) for w, point in zip(weights, points, strict=True)]
        min_mass = max(heaviest, default=0.0) * MIN_COMPLETION_SHARE
        return [
            self._cover(*point, weight, min_mass)
            for point, weight, most in zip(points, weights, heaviest, strict=True)
            if most > min_mass
        ]

    def _most_logp(self, path: Path, node: Node) -> float:
        """Return a bound on the log-probability with which the anchor leaves the row's path at one of its points."""
        following = self.row.nodes.get(self.row.path[: len(path) + 1])
        if following is None or path != self.row.path[: len(path)] or path == self.row.path:
            return node.path_logp
        return node.path_logp + math.log(max(-math.expm1(following.path_logp - node.path_logp), NEGLIGIBLE))

    def _likeliest(self, node: Node, pending: bytes) -> dict[int, float]:
        """The likeliest anchor tokens after a point with their probabilities: any at the end of the text, completions inside."""
        if self.row.is_at_end(pending):
            return node.likeliest
        if pending not in node.completions:
            ids = self.translator.retokenizer.completions(pending)
            prob, order = node.together.probs_of(node.index, ids).topk(min(MAX_COMPLETIONS, len(ids)))
            node.completions[pending] = dict(zip(ids[order.to(ids.device)].tolist(), prob.tolist(), strict=True))
        return node.completions[pending]

    def _cover(self, path: Path, node: Node, pending: bytes, weight: float, min_mass: float) -> Cover:
        """Build a cover with every token that may come next, but no completions of less mass than `min_mass`."""
        if self.row.is_at_end(pending):
            likeliest = {i: weight * prob for i, prob in islice(node.likeliest.items(), MAX_TRACKED)}
            return Cover(path, pending, node, weight, likeliest, self.translator.table(pending, self.row.target_only_prefix))
        likeliest = {i: weight * prob for i, prob in self._likeliest(node, pending).items() if weight * prob > min_mass}
        next_tokens = self.translator.retokenizer.next_tokens(list(likeliest), pending, self.row.target_only_prefix, self.word)
        return Cover(path, pending, node, weight, likeliest, None, dict(zip(likeliest, next_tokens, strict=True)))

    @cached_property
    def tracked(self) -> dict[Path, dict[int, float]]:
        """By the path of each cover, the next tokens that are tracked one by one, with their mass."""
        n_tracked = MAX_TRACKED if self.translator.rule == "bytes" else 0
        return {
            cover.path: {i: m for i, m in islice(cover.likeliest.items(), n_tracked) if self._is_tracked(i, m, cover.pending)}
            for cover in self.covers
        }

    def _is_tracked(self, i: int, mass: float, pending: bytes) -> bool:
        data = self.translator.anchor.decode([i]) if mass > MIN_TRACKED_MASS else b""
        return data.startswith(pending) and data != pending

    def tracked_paths(self) -> list[CoverPath]:
        """Return each tracked token as a path."""
        return [((i,), cover, mass) for cover in self.covers for i, mass in self.tracked[cover.path].items()]

    def open_paths(self) -> list[OpenPath]:
        """Return the open paths of one tracked token."""
        return self._open(self.tracked_paths())

    def open_after(self, path: OpenPath, node: Node) -> list[OpenPath]:
        """Return the open paths that are one token longer than `path`, which was fed up to `node`."""
        tokens = self.translator.anchor.tokens
        likeliest = [(i, path.mass * prob) for i, prob in islice(node.likeliest.items(), MAX_TRACKED)]
        heavy = [(i, mass) for i, mass in likeliest if mass > MIN_TRACKED_MASS and i < len(tokens) and tokens[i]]
        return self._open([((*path.ids, i), path.cover, mass) for i, mass in heavy])

    def _open(self, paths: Sequence[CoverPath]) -> list[OpenPath]:
        found = [OpenPath(mass, mass * self.uncertainty(ids, cover, mass), ids, cover) for ids, cover, mass in paths]
        return [path for path in found if path.uncertain_mass > MIN_BRANCH_MASS]

    def uncertainty(self, ids: Path, cover: Cover, mass: float) -> float:
        """Return the share of a path's mass that may go to another token than its likeliest, or to none.

        All of it where that token goes on beyond the path's text: what the anchor has only begun, the target must not complete.
        """
        canonical_share = self._canonical_share(ids, cover)
        if not canonical_share:
            return 0.0
        candidates = self.candidates(ids, cover, mass)
        if len(candidates) < 2:
            return 1.0 - canonical_share
        weights = [prob + LEAST_OPINION for prob in self.target.probs(candidates)]
        weights[0] += AS_IS_WEIGHT * sum(weights)
        likeliest = max(range(len(weights)), key=weights.__getitem__)
        n_bytes = len(self.row.target_only_prefix) + len(self.translator.anchor.decode(ids)) - len(cover.pending)
        if len(self.translator.target.tokens[candidates[likeliest]] or b"") > n_bytes:
            return 1.0
        return 1.0 - canonical_share * weights[likeliest] / sum(weights)

    def candidates(self, ids: Path, cover: Cover, mass: float) -> list[int]:
        """Return the target's possible next tokens for a path of anchor tokens, that of its text as it is first.

        Empty where the target's tokens so far are not canonical. A path of little mass counts as its text is.
        """
        retokenizer, prefix, place = self.translator.retokenizer, self.row.target_only_prefix, (ids, cover.pending, self.word)
        if mass > MIN_TRACKED_MASS and place in self.target.candidates:
            return self.target.candidates[place]
        text = prefix + self.translator.anchor.decode(ids)[len(cover.pending) :]
        if mass <= MIN_TRACKED_MASS:
            token = retokenizer.next_token(text, self.word)
            return [] if token is None else [token]
        tokens = self.translator.target.tokens
        longer = [t for t in self.target.likeliest if t < len(tokens) and (tokens[t] or b"").startswith(text)]
        longer = [t for t in longer if retokenizer.can_become(ids, t, cover.pending, prefix)]
        if cover.table is not None:
            longer += cover.table.extensions.get(ids, ())
        within = retokenizer.first_tokens(ids, cover.pending, prefix, self.word).tokens
        found = list(dict.fromkeys((*within, *retokenizer.canonical(tuple(longer), self.word))))
        return self.target.candidates.setdefault(place, found)

    def _canonical_share(self, ids: Path, cover: Cover) -> float:
        """Return the share of a path's continuations for which the target's tokens so far are canonical."""
        if not self.word:
            return 1.0
        first_tokens = self.translator.retokenizer.first_tokens(ids, cover.pending, self.row.target_only_prefix, self.word)
        return first_tokens.canonical_share

    def shares(self, ids: Path, cover: Cover, mass: float, nodes: Mapping[Path, Node]) -> Iterator[tuple[int, float]]:
        """Divide the mass of a path of anchor tokens among the target's next tokens.

        After a looked-ahead path, the anchor's next tokens decide; elsewhere the target's own distribution over the tokens
        that the path may become. `nodes` are the row's points, with those that were looked ahead to.
        """
        node = nodes.get(cover.path + ids)
        if node is None:
            share = self._canonical_share(ids, cover) if mass > MIN_TRACKED_MASS else 1.0
            yield from self._divided(self.candidates(ids, cover, mass), mass * share)
            return
        tokens = self.translator.anchor.tokens
        left = mass
        for i, prob in node.likeliest.items():
            value = mass * prob
            if value > MIN_BRANCH_MASS and i < len(tokens) and tokens[i]:
                yield from self.shares((*ids, i), cover, value, nodes)
                left -= value
        yield from self._divided(self.candidates(ids, cover, 0.0), max(left, 0.0))

    def _divided(self, candidates: Sequence[int], mass: float) -> Iterator[tuple[int, float]]:
        """Divide a mass by the target's own distribution, with a bonus for the first candidate."""
        if len(candidates) < 2:
            return iter([(t, mass) for t in candidates])
        weights = self.target.probs(candidates)
        weights[0] += AS_IS_WEIGHT * sum(weights) + NEGLIGIBLE
        scale = mass / sum(weights)
        return ((t, weight * scale) for t, weight in zip(candidates, weights, strict=True))


def current_word(row: RowState, translator: VocabularyTranslator) -> Path:
    """Return the target's tokens from the last one on that begins with white space; empty where none is known."""
    tokens = translator.target.tokens
    starts = [n for n, i in enumerate(row.written) if (tokens[i] or b"")[:1].isspace()]
    return row.written[starts[-1] :] if starts else ()
