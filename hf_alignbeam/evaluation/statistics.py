"""Rates, paired differences, ratios and areas under curves, each with its 95 % interval. Knows numbers only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import binomtest
from scipy.stats import t as student

Z_95 = 1.96
#: The confidence level of exactly that quantile: with 0.95 itself, a few intervals would differ in the last printed digit.
LEVEL = 2 * float(ndtr(Z_95)) - 1
#: How often prompts are drawn again for the interval of an area.
N_DRAWS = 1000


@dataclass(frozen=True)
class Rate:
    """The share of `n` cases that are hits, with its Wilson 95 % interval."""

    n_hits: int
    n: int

    @property
    def share(self) -> float:
        return self.n_hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return _wilson(self.n_hits, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@lru_cache(maxsize=4096)
def _wilson(n_hits: int, n: int) -> tuple[float, float]:
    interval = binomtest(n_hits, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Ratio:
    """The sum of one quantity over batches, divided by the sum of another over the same batches, with its 95 % interval.

    The interval is that of the ratio estimator (Cochran, Sampling Techniques, 6.3), by Student's t over the batches. A single
    batch has no interval.
    """

    numerators: Sequence[float]
    denominators: Sequence[float]

    @property
    def value(self) -> float:
        return sum(self.numerators) / sum(self.denominators)

    @property
    def half_width(self) -> float:
        n = len(self.numerators)
        if n < 2:
            return math.nan
        residuals = [top - self.value * bottom for top, bottom in zip(self.numerators, self.denominators, strict=True)]
        spread = math.sqrt(n * sum(r**2 for r in residuals) / (n - 1)) / sum(self.denominators)
        return float(student.ppf(0.975, n - 1)) * spread

    def __str__(self) -> str:
        digits = max(0, min(3, 2 - math.floor(math.log10(abs(self.value))))) if self.value else 1
        half = "" if math.isnan(self.half_width) else f" ± {self.half_width:.{digits}f}"
        return f"{self.value:.{digits}f}{half}"


def paired_difference(after: Sequence[bool], before: Sequence[bool]) -> tuple[float, float]:
    """The mean of after - before over the same prompts, with the half width of its 95 % interval.

    The half width is that of the adjusted Wald interval of Bonett and Price (2012), which stays honest where hardly any answer
    changed. It stands around the mean itself, where theirs stands around n / (n + 2) of it.
    """
    n_gained = sum(a and not b for a, b in zip(after, before, strict=True))
    n_lost = sum(b and not a for a, b in zip(after, before, strict=True))
    n = len(after)
    spread = (n_gained + n_lost + 2) - (n_gained - n_lost) ** 2 / (n + 2)
    return (n_gained - n_lost) / n, Z_95 * math.sqrt(spread) / (n + 2)


def format_points(after: Sequence[bool], before: Sequence[bool]) -> str:
    """A paired difference in percentage points, with its 95 % interval."""
    mean, half = paired_difference(after, before)
    return f"{100 * mean:+.1f} ± {100 * half:.1f} points"


def auc_interval(auc: float, n_positive: int, n_negative: int) -> tuple[float, float]:
    """The 95 % interval of an area under the ROC curve.

    It is Newcombe's method 5 (Statistics in Medicine 25, 2006, 559-573): the areas from which the measured one is 1.96 standard
    errors away, by Hanley and McNeil's variance at that area. So it stays in [0, 1], and has a width where the area is 0 or 1.

    Args:
        auc: The area, in [0, 1].
        n_positive, n_negative: The numbers of cases of both kinds.
    """
    n = (n_positive + n_negative) / 2 - 1

    def excess(area: float) -> float:
        terms = 1 + n * (1 - area) / (2 - area) + n * area / (1 + area)
        return (area - auc) ** 2 - Z_95**2 * area * (1 - area) * terms / (n_positive * n_negative)

    edge = 1e-12  # at 0 and 1 themselves there is no variance, so that they always solve the equation
    low = 0.0 if auc == 0.0 else brentq(excess, 0.0, min(auc, 1.0 - edge))
    high = 1.0 if auc == 1.0 else brentq(excess, max(auc, edge), 1.0)
    return float(low), float(high)


@dataclass(frozen=True)
class HullArea:
    """The area under the upper hull of points (share of harmless prompts refused, share of harmful ones), with (0, 0) and (1, 1).

    What lies on the hull can be had by mixing two settings at random. The 95 % interval is that of the percentile bootstrap over
    prompts, which are drawn anew for all points alike.

    Args:
        harmless, harmful: For each point, whether each prompt is refused, in one order of the prompts for all points.
    """

    harmless: Sequence[Sequence[bool]]
    harmful: Sequence[Sequence[bool]]

    @property
    def value(self) -> float:
        return _area_under_hull(*(np.asarray(hits, dtype=float).mean(-1) for hits in (self.harmless, self.harmful)))

    @property
    def interval(self) -> tuple[float, float]:
        rng = np.random.default_rng(0)
        drawn = []
        for hits in (self.harmless, self.harmful):
            found = np.asarray(hits, dtype=float)  # (points, prompts)
            index = rng.integers(found.shape[1], size=(N_DRAWS, found.shape[1]))
            drawn.append(found[:, index].mean(-1).T)  # (draws, points)
        areas = [_area_under_hull(x, y) for x, y in zip(*drawn, strict=True)]
        low, high = np.quantile(areas, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


def _area_under_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    hull: list[tuple[float, float]] = []
    for point in sorted({(0.0, 0.0), *zip(x.tolist(), y.tolist(), strict=True), (1.0, 1.0)}):
        while len(hull) > 1 and _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return float(trapezoid([b for _, b in hull], [a for a, _ in hull]))


def _turns_left(first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]) -> bool:
    """Whether the second of three points lies on or below the line from the first to the third."""
    (a, b), (c, d), (e, f) = first, second, third
    return (d - b) * (e - a) <= (f - b) * (c - a)
