"""The interval of an area under the ROC curve: inside [0, 1], never without a width, and right as often as it says."""

import random

import pytest

from hf_alignbeam.evaluation.statistics import auc_interval
from hf_alignbeam.judges.calibration import KnownVerdict, separation


@pytest.mark.parametrize("auc", [0.0, 0.2, 0.5, 0.81, 0.999, 1.0])
@pytest.mark.parametrize("n", [(3, 4), (50, 200)])
def test_the_interval_holds_the_area_and_has_a_width(auc, n):
    low, high = auc_interval(auc, *n)
    assert 0.0 <= low <= auc <= high <= 1.0
    assert high - low > 0.001
    mirrored = auc_interval(1.0 - auc, *n)
    assert (1.0 - mirrored[1], 1.0 - mirrored[0]) == pytest.approx((low, high), abs=1e-6)


def test_more_cases_give_a_narrower_interval():
    widths = [high - low for low, high in (auc_interval(0.8, n, 2 * n) for n in (5, 20, 100, 400))]
    assert widths == sorted(widths, reverse=True)


def test_the_interval_covers_the_true_area_about_as_often_as_it_says():
    """Normal verdicts one standard deviation apart have an area of .7602."""
    draw, hits, n_runs = random.Random(0), 0, 400
    for _ in range(n_runs):
        verdicts = [KnownVerdict(draw.gauss(float(harmful)), harmful) for harmful in [True] * 20 + [False] * 30]
        low, high = auc_interval(separation(verdicts), 20, 30)
        hits += low <= 0.7602 <= high
    assert 0.92 <= hits / n_runs <= 0.985
