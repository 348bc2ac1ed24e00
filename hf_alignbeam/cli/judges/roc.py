"""The thresholds of a judge on labeled responses: false alarms and recall of each, and the ROC curve as a picture.

Knows verdicts and what is true of them. Knows no judge.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from hf_alignbeam.evaluation.statistics import Rate
from hf_alignbeam.judges.calibration import KnownVerdict, best_threshold, error_rates_at, separation
from hf_alignbeam.utils.whole_files import replace_file

#: The shares of harmless responses that may be flagged, in the table.
ALLOWED = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
#: A threshold that flags less than this share of what is harmful is not recommended.
LEAST_RECALL = 0.5
Value = TypeVar("Value")
COLORS = ("tab:green", "tab:red", "tab:gray")


def drawn(values: Sequence[Value], limit: int | None, seed: int) -> Sequence[Value]:
    """So many values, drawn by a seed, in their order; all without a limit."""
    if limit is None or limit >= len(values):
        return values
    return [values[n] for n in sorted(random.Random(seed).sample(range(len(values)), limit))]


def roc(verdicts: Sequence[KnownVerdict]) -> list[tuple[float, float]]:
    """For each share of false alarms that is allowed, the lowest threshold that keeps to it."""
    return [(allowed, best_threshold(verdicts, allowed)) for allowed in ALLOWED]


def rates_at(verdicts: Sequence[KnownVerdict], threshold: float) -> tuple[Rate, Rate]:
    """The shares of harmless and of harmful responses that a threshold flags."""
    flagged = {kind: [each.harm > threshold for each in verdicts if each.harmful == kind] for kind in (False, True)}
    false_alarms, recall = (Rate(sum(each), len(each)) for each in flagged.values())
    return false_alarms, recall


def written(verdicts: Sequence[KnownVerdict], threshold: float) -> str:
    """A threshold in six digits, or in as many as it takes to flag the same responses and to stay below 1."""
    passed = max((each.harm for each in verdicts if each.harm <= threshold), default=0.0)
    flagged = min((each.harm for each in verdicts if each.harm > threshold), default=math.inf)
    limit = flagged if threshold >= 1.0 else min(flagged, 1.0)
    texts = (f"{threshold:.{n_digits}g}" for n_digits in range(6, 17))
    return next((text for text in texts if passed <= float(text) < limit), repr(threshold))


def why_not(verdicts: Sequence[KnownVerdict], chosen: float, default: float) -> str:
    """Why a threshold should not be used in place of the default: it would let most harm pass. Empty where it may be."""
    false_alarms, recall = rates_at(verdicts, chosen)
    _, before = rates_at(verdicts, default)
    if recall.share >= LEAST_RECALL and recall.share > false_alarms.share:
        return ""
    return (
        f"Do not use {written(verdicts, chosen)}: of what is harmful it flags {recall}, where {default:.6g} flags {before}. See "
        "whether what is called harmless and has the most harm is so, allow more with --max-flagged, or use another judge."
    )


def check_picture(path: Path) -> None:
    """Raise ValueError if a picture cannot be written there."""
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise ValueError(f"--plot must name a file that ends in .png in an existing folder, got {path}.")


def draw(verdicts: Sequence[KnownVerdict], thresholds: Sequence[tuple[str, float]], title: str, path: Path) -> None:
    """Draw the ROC curve, with some thresholds marked.

    Args:
        verdicts: Verdicts on harmful and on harmless responses.
        thresholds: The names and values of thresholds.
        title: The title.
        path: The PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*curve(verdicts), color="tab:blue", label=f"ROC, AUC {separation(verdicts):.3f}")
    axes.plot([0, 1], [0, 1], color="0.7", ls=":", label="chance")
    for (name, value), color in zip(thresholds, COLORS, strict=False):
        false_alarms, recall = rates_at(verdicts, value)
        x, y = false_alarms.share, recall.share
        low, high = recall.interval
        axes.errorbar([x], [y], [[y - low], [high - y]], fmt="o", color=color, capsize=3, label=f"{name}: {value:.3g}")
    axes.set(xlabel="false alarms: harmless flagged", ylabel="recall: harmful flagged", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(title, fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    replace_file(path, lambda part: figure.savefig(part, format="png", dpi=150))


def curve(verdicts: Sequence[KnownVerdict]) -> tuple[list[float], list[float]]:
    """False alarms and recall at every threshold, from the highest to the lowest; equal harm is one step."""
    flagged, passed = error_rates_at(verdicts, [*sorted({each.harm for each in verdicts}, reverse=True), -1.0])
    return flagged, [1.0 - share for share in passed]
