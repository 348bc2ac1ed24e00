"""Looking ahead: feeds the anchor a token more where only its next distribution tells which token of the target comes next.

Knows rows, open paths and the anchor's cache. What it feeds in vain costs a token, and changes no distribution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hf_alignbeam.anchor.cover import Cover, CoverPath, OpenPath
from hf_alignbeam.anchor.covering import MIN_UNCERTAIN_MASS, READERS, CoverDistribution, TargetDistribution, current_word
from hf_alignbeam.anchor.state import MIN_TOKEN_LOGP, Distributions, Path, RowState
from hf_alignbeam.inference.branching_cache import BranchingCache, Leaf
from hf_alignbeam.translation.translator import VocabularyTranslator

#: So many of the target's likeliest tokens are taken for what the anchor may write next.
N_FORESEEN = 2


class LookAhead:
    """The look-ahead of one call, which may take so many forwards of its own in a step. The translator's rule is `"bytes"`."""

    def __init__(self, cache: BranchingCache, translator: VocabularyTranslator, n_forwards: int):
        self._cache = cache
        self._translator = translator
        self._n_forwards = n_forwards

    def foresee(self, rows: list[RowState], paths: list[Path], targets: dict[int, TargetDistribution]) -> dict[int, list[Path]]:
        """Return what it will likely ask for, before the anchor is fed the tokens last written: so one forward takes both.

        The rows have their new texts, whose tokens are `paths`, and the points that the anchor was fed before. The paths
        returned for a row are one token longer than one of those, or than its path.
        """
        if self._cache.engine.n_leaves == 1:
            return {}
        translator, new = self._translator, {i: replace(rows[i], path=paths[i]) for i in targets}
        distributions = {
            i: CoverDistribution(row, translator, targets[i], current_word(row, translator)) for i, row in new.items()
        }
        likely = {i: self._likely(each) for i, each in distributions.items()}
        for read in READERS:
            read([(each, *path) for i, each in distributions.items() for path in (*each.tracked_paths(), *likely[i])])
        return {i: _foreseen(each, likely[i]) for i, each in distributions.items()}

    def _likely(self, distribution: CoverDistribution) -> list[CoverPath]:
        """What the anchor may write at the end of a path that it was not fed, with the mass of the target's likeliest tokens."""
        anchor, tokens, row, found = self._translator.anchor, self._translator.target.tokens, distribution.row, []
        if row.path and row.path not in row.nodes:
            table = self._translator.table(b"", row.target_only_prefix)
            end, likeliest = Cover(row.path, b"", row.nodes[()], 1.0, {}, table), distribution.target.likeliest[:N_FORESEEN]
            for i, mass in zip(likeliest, distribution.target.probs(likeliest), strict=True):
                data = (tokens[i] or b"").removeprefix(row.target_only_prefix) if i < len(tokens) else b""
                longer = anchor.encode(row.text + data) if data and mass > MIN_UNCERTAIN_MASS else ()
                if longer and longer[: len(row.path)] == row.path:
                    found.append((longer[len(row.path) : len(row.path) + 1], end, mass))
        return found

    def __call__(self, rows: list[RowState], distributions: Mapping[int, CoverDistribution]) -> list[RowState]:
        """Feed the anchor the open paths of most uncertain mass, a few per row and forward, while the budget lasts.

        A row whose paths are nearly certain is left out: in nearly all steps no row needs a look-ahead.
        """
        for read in READERS:
            read([(each, *path) for each in distributions.values() for path in each.tracked_paths()])
        queues = {i: _open(distribution, distribution.open_paths(), rows[i]) for i, distribution in distributions.items()}
        n_leaves = self._cache.engine.n_leaves
        for _ in range(self._n_forwards):
            chosen: dict[int, list[OpenPath]] = {}
            for i, queue in queues.items():
                queue.sort(key=lambda path: path.uncertain_mass, reverse=True)
                if sum(path.uncertain_mass for path in queue) > MIN_UNCERTAIN_MASS:
                    chosen[i], queue[:] = queue[:n_leaves], queue[n_leaves:]
            if not chosen:
                break
            rows = self._feed(rows, {i: [path.path for path in paths] for i, paths in chosen.items()})
            for i, paths in chosen.items():
                queues[i] += _open(distributions[i], paths, rows[i])
        return rows

    def _feed(self, rows: list[RowState], paths: Mapping[int, Sequence[Path]]) -> list[RowState]:
        """Feed, in one forward, the last token of each path of some rows that was not fed yet."""
        new = [[path for path in paths.get(i, ()) if path not in row.nodes] for i, row in enumerate(rows)]
        if not any(new):
            return rows
        slot = self._cache.n_slots
        after = self._cache.branch(
            [[Leaf(path[-1], row.slots(path[:-1])) for path in leaves] for row, leaves in zip(rows, new, strict=True)]
        )
        together, tokens = Distributions(after.prob), self._translator.anchor.tokens
        return [
            row.with_points([(path, slot + k) for k, path in enumerate(leaves)], together, after.first[i], tokens, MIN_TOKEN_LOGP)
            for i, (row, leaves) in enumerate(zip(rows, new, strict=True))
        ]


def _foreseen(distribution: CoverDistribution, likely: Sequence[CoverPath]) -> list[Path]:
    """Return the paths of much uncertain mass: those from the points that the anchor was fed, and what it may likely write."""
    found = {each.path: each.uncertain_mass for each in distribution.open_paths()}
    found |= {cover.path + ids: mass * distribution.uncertainty(ids, cover, mass) for ids, cover, mass in likely}
    return [each for each, mass in found.items() if mass > MIN_UNCERTAIN_MASS]


def _open(distribution: CoverDistribution, paths: Sequence[OpenPath], row: RowState) -> list[OpenPath]:
    """Return the paths, in place of each that was fed those that are one token longer."""
    found: list[OpenPath] = []
    for path in paths:
        node = row.nodes.get(path.path)
        found += [path] if node is None else _open(distribution, distribution.open_after(path, node), row)
    return found
