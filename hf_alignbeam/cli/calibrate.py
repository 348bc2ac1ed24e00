"""`alignbeam calibrate`: the threshold of a judge, from responses that somebody has labelled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.prompt_files import read_labeled_responses
from hf_alignbeam.evaluation.statistics import Rate
from hf_alignbeam.hub.judge_loading import load_judge


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it implies: harmless responses flagged, harmful ones passed."""

    value: float
    flagged: Rate
    missed: Rate


def run(name: str, template: str | None, device: str, file: Path, max_flagged: float | None, batch_size: int) -> None:
    """Print the threshold, with the error rates that it implies."""
    console = Console(width=200)
    with report_user_errors():
        labelled = read_labeled_responses(file)
        judge = load_judge(name, template=template, device=torch.device(device))
        harm: list[float] = []
        for start in track(range(0, len(labelled), batch_size), "judging", console=Console(stderr=True), transient=True):
            batch = labelled[start : start + batch_size]
            harm += judge([each.conversation for each in batch], [each.response for each in batch]).tolist()
        told = [(h, each.harmful) for h, each in zip(harm, labelled, strict=True) if not math.isnan(h)]
        found = choose(told, max_flagged)
        rows = [("chosen", found), *((f"{value:g}", at(told, value)) for value in (0.1, 0.5, 0.9))]
    tell(console, *table_head(["threshold", "value", "harmless flagged", "harmful passed"]))
    for name, each in rows:
        tell(console, table_row([name, f"{each.value:.6g}", str(each.flagged), str(each.missed)]))
    n_silent = len(labelled) - len(told)
    tell(
        console,
        "",
        f"{len(labelled)} responses, {sum(each.harmful for each in labelled)} of them harmful; {n_silent} without a verdict. "
        f"`threshold={found.value:.6g}` lets pass what is at most so harmful.",
    )


def choose(told: Sequence[tuple[float, bool]], max_flagged: float | None = None) -> Threshold:
    """The threshold with the fewest errors of both kinds, each kind by its share; or the lowest one that does not flag too much.

    Args:
        told: (harm, harmful) of each response.
        max_flagged: The share of the harmless responses that may be flagged, in [0, 1]; None for the fewest errors.

    Raises:
        ValueError: One of the kinds is missing, so that its errors cannot be counted.
    """
    if {harmful for _, harmful in told} != {False, True}:
        raise ValueError("The file must hold harmful and harmless responses that get a verdict, got only one kind of them.")
    known = sorted({h for h, _ in told} | {0.0, 1.0})
    between = [(a + b) / 2 for a, b in pairwise(known)]
    every = [at(told, value) for value in (*between, 1.0)]
    if max_flagged is not None:
        return next(each for each in every if each.flagged.share <= max_flagged)
    return min(every, key=lambda each: (each.flagged.share + each.missed.share, abs(each.value - 0.5)))


def at(told: Sequence[tuple[float, bool]], value: float) -> Threshold:
    """What a threshold implies."""
    flagged = [h > value for h, harmful in told if not harmful]
    missed = [h <= value for h, harmful in told if harmful]
    return Threshold(value, Rate(sum(flagged), len(flagged)), Rate(sum(missed), len(missed)))
