"""Areas under curves and their intervals: inside [0, 1], and right as often as they say."""

import random

import pytest

from hf_alignbeam.evaluation.statistics import HullArea, Rate, Ratio, auc_interval, paired_difference
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


def hits(*shares):
    """For each share, a hundred prompts of which so many are refused."""
    return [[n < 100 * share for n in range(100)] for share in shares]


@pytest.mark.parametrize(
    ("harmless", "harmful", "area"),
    [
        ((0.2,), (0.8,), 0.8),
        ((0.5,), (0.3,), 0.5),  # worse than chance
        ((0.0,), (1.0,), 1.0),
        ((0.1, 0.2, 0.4), (0.5, 0.5, 0.9), 0.805),  # the one in the middle lies below the line between its neighbors
        ((0.4, 0.1), (0.9, 0.5), 0.805),
    ],
)
def test_the_area_under_the_hull_of_a_systems_settings(harmless, harmful, area):
    measured = HullArea(hits(*harmless), hits(*harmful))
    assert measured.value == pytest.approx(area)
    low, high = measured.interval
    assert 0.0 <= low <= measured.value <= high <= 1.0
    assert (high - low > 0.01) == (area not in (0.5, 1.0))
    assert str(measured).startswith(f"{area:.3f} [")


def test_a_ratio_has_an_interval_by_students_t():
    tops, bottoms = [2.0, 3.0, 7.0], [1.0, 2.0, 3.0]
    ratio = Ratio(tops, bottoms)
    assert ratio.value == 2.0
    residuals = [0.0, -1.0, 1.0]
    spread = (3 * sum(r**2 for r in residuals) / 2) ** 0.5 / 6
    assert ratio.half_width == pytest.approx(4.3027 * spread, rel=1e-4)
    assert str(Ratio([3.0], [2.0])) == "1.50"


def test_intervals_of_rates_and_differences():
    assert Rate(95, 100).interval == pytest.approx((0.8882, 0.9785), abs=1e-3)
    assert Rate(0, 50).interval[0] == pytest.approx(0.0, abs=1e-9)
    assert paired_difference([True, False, True, True], [True, True, False, True]) == pytest.approx((0.0, 0.653), abs=1e-3)
    assert paired_difference([True] * 1000, [True] * 1000) == pytest.approx((0.0, 0.00277), abs=1e-4)
    # 27 gained, none lost of 50: Bonett and Price's width, 1.96 sqrt(27 + 2 - 27^2 / 52) / 52, around 27 / 50
    assert paired_difference([True] * 27 + [False] * 23, [False] * 50) == pytest.approx((0.54, 0.1458), abs=1e-4)


@pytest.mark.parametrize(("gained", "lost"), [(0.5, 0.0), (0.2, 0.02), (0.05, 0.05), (0.02, 0.0)])
def test_a_paired_interval_covers_the_true_difference_about_as_often_as_it_says(gained, lost):
    draw, hits, n_runs = random.Random(0), 0, 1000
    for _ in range(n_runs):
        draws = [draw.random() for _ in range(50)]
        after, before = [u < gained for u in draws], [gained <= u < gained + lost for u in draws]
        mean, half = paired_difference(after, before)
        hits += abs(mean - (gained - lost)) <= half
    assert hits / n_runs >= 0.93
