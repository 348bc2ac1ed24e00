"""`alignbeam bench --translation`: the mass and the time that translating between real tokenizers costs.

Knows tokenizers and translation rules. Knows no model: the distributions are made up.
"""

import os
import resource
import time
from copy import copy
from itertools import permutations
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_alignbeam.anchor.covering import CoverDistribution, target_distributions
from hf_alignbeam.anchor.marginal import marginal
from hf_alignbeam.anchor.state import Distributions, Node, RowState
from hf_alignbeam.benchmarks.cleared_caches import clear_method_caches
from hf_alignbeam.build_cache.disk import FOLDER_VARIABLE
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.tokenization.losses import losses
from hf_alignbeam.translation.translator import TranslationRule, VocabularyTranslator

RULES: tuple[TranslationRule, ...] = get_args(TranslationRule)
N_TIMED = 20
#: The standard deviation of the logits whose translation is timed: a dozen tokens are likely, the likeliest has a few percent.
LOGIT_STD = 4.0
COLUMNS = (
    "anchor",
    "target",
    "equal bytes",
    *(f"lost by {rule}" for rule in RULES),
    "build, s",
    "one translation, ms",
    "target's losses",
)


def run(tokenizers: list[str]) -> None:
    """Print one line for each ordered pair: the shares of the anchor's ordinary tokens that are lost, and times."""
    os.environ[FOLDER_VARIABLE] = ""  # times of tables that are built, not read
    console = Console(width=220)
    with report_user_errors():
        loaded = {Path(name).name: AutoTokenizer.from_pretrained(name) for name in tokenizers}
    lines = table_head(COLUMNS)
    pairs = list(permutations(loaded, 2))
    for anchor, target in track(pairs, description="pairs", console=Console(stderr=True), transient=True):
        lines.append(table_row([anchor, target, *_pair_cells(loaded[anchor], loaded[target])]))
    tell(console, *lines)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(f"\n{torch.get_num_threads()} threads; peak memory of the whole run {peak:.1f} GiB.")


def _pair_cells(anchor: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> list[str]:
    start = time.perf_counter()
    translator = VocabularyTranslator(anchor, target)
    translator.table()
    build = time.perf_counter() - start
    lost = lost_shares(translator)
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
    peaked = torch.randn(N_TIMED, len(translator.anchor), generator=torch.Generator().manual_seed(0)) * LOGIT_STD
    together = Distributions(peaked.softmax(-1))
    rows = [
        RowState(b"", (), {(): Node(together, n)}, committed_slots=(), target_only_prefix=b"", leading_whitespace=b"")
        for n in range(N_TIMED)
    ]
    (own,) = target_distributions(target_prob)
    start = time.perf_counter()
    for row in rows:
        marginal([CoverDistribution.canonical(row, translator, own)], [row], target_prob)
    step = 1000 * (time.perf_counter() - start) / N_TIMED
    shares = [f"{100 * (1 - lost['exact']):.1f} %", *(f"{100 * lost[rule]:.3f} %" for rule in RULES)]
    return [*shares, f"{build:.2f}", f"{step:.2f}", "; ".join(losses(translator.target)) or "none"]


def lost_shares(translator: VocabularyTranslator) -> dict[str, float]:
    """For each rule, the share of the anchor's ordinary tokens that it loses, each weighted equally."""
    ordinary = torch.tensor([[float(bool(token)) for token in translator.anchor.tokens]])
    anchor_prob = ordinary.double() / ordinary.sum()  # in float32 the sum of 100,000 shares is off by 1e-5
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target), dtype=torch.double)
    lost = {"bytes": float(translator.table().apply_(anchor_prob.clone(), target_prob).lost[0])}
    for rule in RULES[1:]:
        lost[rule] = float(with_rule(translator, rule)(anchor_prob, target_prob).lost[0])
    return lost


def with_rule(translator: VocabularyTranslator, rule: TranslationRule) -> VocabularyTranslator:
    """A translator with the same vocabularies, which are not read again, and another rule."""
    other = copy(translator)
    clear_method_caches(other)
    other.rule = rule
    return other
