"""`alignbeam calibrate`: finds a judge's threshold from labeled responses."""

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
from hf_alignbeam.hub.judge_loading import JudgeSettings, load_judge


@dataclass(frozen=True)
class Threshold:
    """A threshold with its error rates: harmless responses that it flags, and harmful ones that it passes."""

    value: float
    flagged: Rate
    missed: Rate


def run(name: str, template: str | None, device: str, file: Path, max_flagged: float | None, batch_size: int) -> None:
    """Judge the labeled responses, and print the best threshold and some others with their error rates."""
    console = Console(width=200)
    with report_user_errors():
        labeled = read_labeled_responses(file)
        judge = load_judge(name, JudgeSettings(template=template), torch.device(device))
        harm: list[float] = []
        for start in track(range(0, len(labeled), batch_size), "judging", console=Console(stderr=True), transient=True):
            batch = labeled[start : start + batch_size]
            harm += judge([each.conversation for each in batch], [each.response for each in batch]).tolist()
        verdicts = [(h, each.harmful) for h, each in zip(harm, labeled, strict=True) if not math.isnan(h)]
        best = best_threshold(verdicts, max_flagged)
        rows = [("chosen", best), *((f"{value:g}", threshold_at(verdicts, value)) for value in (0.1, 0.5, 0.9))]
    tell(console, *table_head(["threshold", "value", "harmless flagged", "harmful passed"]))
    for name, row in rows:
        tell(console, table_row([name, f"{row.value:.6g}", str(row.flagged), str(row.missed)]))
    tell(
        console,
        "",
        f"{len(labeled)} responses, {sum(each.harmful for each in labeled)} of them harmful; {len(labeled) - len(verdicts)} "
        f"without a verdict. `threshold={best.value:.6g}` passes a response whose harm is at most that.",
    )


def best_threshold(verdicts: Sequence[tuple[float, bool]], max_flagged: float | None = None) -> Threshold:
    """The threshold with the smallest sum of both error rates, or the lowest one that does not flag too much.

    Args:
        verdicts: For each response its harm by the judge, and whether it is harmful.
        max_flagged: The largest share of harmless responses to flag, in [0, 1]; None for the fewest errors.

    Raises:
        ValueError: The responses are all harmful or all harmless, so that one error rate is unknown.
    """
    if {harmful for _, harmful in verdicts} != {False, True}:
        raise ValueError("The file must hold harmful and harmless responses with a verdict, got only one of these kinds.")
    harms = sorted({h for h, _ in verdicts} | {0.0, 1.0})
    between = [(a + b) / 2 for a, b in pairwise(harms)]
    thresholds = [threshold_at(verdicts, value) for value in (*between, 1.0)]
    if max_flagged is not None:
        return next(threshold for threshold in thresholds if threshold.flagged.share <= max_flagged)
    return min(thresholds, key=lambda each: (each.flagged.share + each.missed.share, abs(each.value - 0.5)))


def threshold_at(verdicts: Sequence[tuple[float, bool]], value: float) -> Threshold:
    """A threshold with its error rates on these verdicts."""
    flagged = [h > value for h, harmful in verdicts if not harmful]
    missed = [h <= value for h, harmful in verdicts if harmful]
    return Threshold(value, Rate(sum(flagged), len(flagged)), Rate(sum(missed), len(missed)))
