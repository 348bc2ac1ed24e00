"""Shares, paired differences and ratios, each with its 95 % interval. Knows numbers only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

Z_95 = 1.96


@dataclass(frozen=True)
class Rate:
    """A share of `n` cases, with its Wilson 95 % interval."""

    n_hits: int
    n: int

    @property
    def share(self) -> float:
        return self.n_hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        centre = (self.share + Z_95**2 / (2 * self.n)) / (1 + Z_95**2 / self.n)
        half = math.sqrt(self.share * (1 - self.share) / self.n + (Z_95 / (2 * self.n)) ** 2) * Z_95
        half /= 1 + Z_95**2 / self.n
        return max(centre - half, 0.0), min(centre + half, 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True)
class Ratio:
    """A sum over batches in relation to another sum over the same batches, with its 95 % interval.

    The interval is the ratio estimator's (Cochran, Sampling Techniques, 6.3), by Student's t over the batches; there is none
    where there is one batch.
    """

    tops: Sequence[float]
    bottoms: Sequence[float]

    @property
    def value(self) -> float:
        return sum(self.tops) / sum(self.bottoms)

    @property
    def half_width(self) -> float:
        n = len(self.tops)
        if n < 2:
            return math.nan
        residuals = [top - self.value * bottom for top, bottom in zip(self.tops, self.bottoms, strict=True)]
        spread = math.sqrt(n * sum(r**2 for r in residuals) / (n - 1)) / sum(self.bottoms)
        return float(student.ppf(0.975, n - 1)) * spread

    def __str__(self) -> str:
        digits = max(0, min(3, 2 - math.floor(math.log10(abs(self.value))))) if self.value else 1
        half = "" if math.isnan(self.half_width) else f" ± {self.half_width:.{digits}f}"
        return f"{self.value:.{digits}f}{half}"


def paired_difference(after: Sequence[bool], before: Sequence[bool]) -> tuple[float, float]:
    """The mean of after - before over the same prompts, with the half width of its 95 % interval.

    The interval is Bonett and Price's adjusted Wald (2012), which stays honest where hardly any answer changed.
    """
    n_gained = sum(a and not b for a, b in zip(after, before, strict=True))
    n_dropped = sum(b and not a for a, b in zip(after, before, strict=True))
    n = len(after)
    spread = (n_gained + n_dropped + 2) - (n_gained - n_dropped) ** 2 / (n + 2)
    return (n_gained - n_dropped) / n, Z_95 * math.sqrt(spread) / (n + 2)


def points(after: Sequence[bool], before: Sequence[bool]) -> str:
    """A paired difference in points, with its 95 % interval."""
    mean, half = paired_difference(after, before)
    return f"{100 * mean:+.1f} ± {100 * half:.1f} points"
