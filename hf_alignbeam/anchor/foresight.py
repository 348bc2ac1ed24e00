"""What a look-ahead will likely ask for, known before the anchor is fed the tokens last written: so one forward takes both.

Knows one row and the target's own distribution. What it foresees wrongly costs a token, and changes no distribution.
"""

import math
from dataclasses import replace

from torch import Tensor

from hf_alignbeam.anchor.cover import Cover
from hf_alignbeam.anchor.covering import MIN_UNCERTAIN_MASS, CoverDistribution, current_word
from hf_alignbeam.anchor.state import Path, RowState
from hf_alignbeam.translation.translator import VocabularyTranslator

#: How many of the target's likeliest tokens are taken for what the anchor may write next.
N_LIKELY = 2


def foreseen_paths(row: RowState, path: Path, translator: VocabularyTranslator, target_prob: Tensor) -> list[Path]:
    """Return the paths, each one token longer than a known one or than `path`, whose mass may be uncertain.

    Args:
        row: A row with its new text, and with the points that the anchor was fed before.
        path: The anchor's tokens for the text.
        translator: Between the two vocabularies.
        target_prob: (V,) the target's own distribution of the next token.
    """
    anchor, target = translator.anchor, translator.target
    nodes = {each: node for each, node in row.nodes.items() if row.text.startswith(anchor.decode(each))}
    row = replace(row, path=path, nodes=nodes)
    distribution = CoverDistribution(row, translator, target_prob, current_word(row, translator))
    share = _share_of_known(row)
    found = {each.path: each.uncertain_mass * share for each in distribution.open_paths()} if share > MIN_UNCERTAIN_MASS else {}
    if path and path not in nodes:
        end = distribution.cover_at_end(path)
        for mass, i in zip(*(part.tolist() for part in target_prob.topk(N_LIKELY)), strict=True):
            data = (target.tokens[i] or b"").removeprefix(row.target_only_prefix) if i < len(target.tokens) else b""
            longer = anchor.encode(row.text + data)
            if data and longer[: len(path)] == path:
                found[longer[: len(path) + 1]] = mass * distribution.uncertainty(longer[len(path) : len(path) + 1], end, mass)
    return [each for each, mass in found.items() if mass > MIN_UNCERTAIN_MASS]


def _share_of_known(row: RowState) -> float:
    """How much of a row's mass the known points have, where that of the end of its path is known."""
    parent = row.nodes.get(row.path[:-1]) if row.path else None
    if row.path in row.nodes or parent is None:
        return 1.0
    best = max(node.path_logp for node in row.nodes.values())
    return math.exp(min(0.0, best - parent.path_logp - float(parent.logp[row.path[-1]])))
