"""What the rows of a batch read from their distributions, read for all of them at once; and old distributions, freed.

A read of a few numbers costs a GPU as much as one of many, and a distribution is as wide as its vocabulary. Nothing that is
predicted changes. Knows rows, covers and byte strings. The installed package has this, and the folders of the strategy.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_alignbeam.anchor.cover import Cover
from hf_alignbeam.anchor.covering import READERS, CoverDistribution
from hf_alignbeam.anchor.follower import CONDENSERS
from hf_alignbeam.anchor.state import Distributions, Node, Path, RowState
from hf_alignbeam.tokenization.vocabulary import complete_characters
from hf_alignbeam.translation.translator import VocabularyTranslator


class AgreeingTokens(Distributions):
    """What is left of one distribution inside a text: the tokens that agree with what is written after it.

    Args:
        longer: (M,) the ids of the tokens that begin with the bytes after it, in the order of their bytes.
        values: (M,) their probabilities.
        shorter: The probabilities of the tokens that these bytes begin with, by id.
    """

    def __init__(self, longer: Tensor, values: Tensor, shorter: dict[int, float]):
        self._longer, self._values, self._shorter = longer, values, shorter

    def prob_of(self, index: int, i: int) -> float:
        """As `Distributions.prob_of`."""
        prob = self._shorter.get(i)
        return float(self._values[self._longer == i].sum()) if prob is None else prob

    def probs_of(self, index: int, ids: Tensor) -> Tensor:
        """As `Distributions.probs_of`; where more bytes were written since, their tokens are a run of those kept."""
        first = 0 if len(ids) == len(self._longer) else int((self._longer == ids[:1]).nonzero().sum())
        return self._values[first : first + len(ids)]


def condensed(rows: Sequence[RowState], translator: VocabularyTranslator) -> list[RowState]:
    """Keep, of each distribution inside a text, the tokens that agree with what is written after it.

    A single row keeps all: it would be read no less often, and one row keeps little.
    """
    if len(rows) == 1:
        return list(rows)
    nodes, by_bytes = [row.nodes for row in rows], translator.anchor.by_bytes
    found: dict[int, list[tuple[int, Path, Node, Tensor, list[int]]]] = defaultdict(list)
    for n, row in enumerate(rows):
        for path, node in row.nodes.items():
            if not isinstance(node.together, AgreeingTokens) and row.text.startswith(node.text):
                pending = row.text[len(node.text) :]
                if not row.is_at_end(pending := pending[: complete_characters(pending)]):
                    starts = (by_bytes.get(pending[:size]) for size in range(1, len(pending) + 1))
                    longer, shorter = translator.retokenizer.completions(pending), [i for i in starts if i is not None]
                    found[id(node.together)].append((n, path, node, longer, shorter))
    for points in found.values():
        prob = points[0][2].together.prob
        places = [longer + node.index * prob.shape[-1] for _, _, node, longer, _ in points]
        few = [i + node.index * prob.shape[-1] for _, _, node, _, shorter in points for i in shorter]
        places.append(torch.tensor(few, dtype=torch.long))
        values = prob.view(-1)[torch.cat(places).to(prob.device)].cpu().split([*map(len, places)])
        rest = iter(values[-1].tolist())
        for (n, path, node, longer, shorter), value in zip(points, values[:-1], strict=True):
            left = AgreeingTokens(longer, value, {i: next(rest) for i in shorter})
            nodes[n] = nodes[n] | {path: replace(node, together=left)}
    return [replace(row, nodes=each) for row, each in zip(rows, nodes, strict=True)]


def read_candidates(paths: Sequence[tuple[CoverDistribution, Path, Cover, float]]) -> None:
    """Read the target's probabilities of all that some paths of all rows may become."""
    new = []
    for distribution, ids, cover, mass in paths:
        candidates = distribution.candidates(ids, cover, mass)
        new += [(distribution.target, t) for t in candidates if len(candidates) > 1 and t not in distribution.target.known]
    if len({target.index for target, _ in new}) == 1:
        new[0][0].probs(list(dict.fromkeys(t for _, t in new)))
    elif new:
        together = new[0][0].together
        places = torch.tensor([(target.index, t) for target, t in new], device=together.device)
        for (target, t), prob in zip(new, together[places.unbind(-1)].tolist(), strict=True):
            target.known[t] = prob


def read_at_once() -> None:
    """Let every anchor of this process be read at once."""
    CONDENSERS[:], READERS[:] = [condensed], [read_candidates]
