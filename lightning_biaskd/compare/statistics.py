"""Means over seeds, and differences between rows that share them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.stats import t


class Summary(NamedTuple):
    """Of one row.

    Attributes:
        n: number of seeds.
        mean: NaN for none.
        std: sample standard deviation, n - 1 in the denominator; NaN below two seeds.
    """

    n: int
    mean: float
    std: float


class Difference(NamedTuple):
    """Of two rows, seed by seed.

    Attributes:
        n: number of seeds that both have.
        mean: of the differences; NaN for none.
        low: of the confidence interval; NaN below two seeds.
        high: upper end of the interval.
    """

    n: int
    mean: float
    low: float
    high: float


def summary(values: Sequence[float]) -> Summary:
    """Mean and standard deviation.

    Example:
        >>> summary([1.0, 2.0, 3.0])
        Summary(n=3, mean=2.0, std=1.0)
    """
    mean = statistics.fmean(values) if values else math.nan
    return Summary(len(values), mean, statistics.stdev(values) if len(values) > 1 else math.nan)


def paired_difference(row: Mapping[int, float], reference: Mapping[int, float], level: float = 0.95) -> Difference:
    r"""Mean difference over the seeds that both have, with Student's interval.

    .. math:: \bar d \pm t_{n-1,\,(1+\mathrm{level})/2}\; s_d / \sqrt n

    Runs of one seed share their initial weights and the order of their data, so their difference varies less than the
    runs do.

    Args:
        row: values by seed.
        reference: values of the reference, by seed.
        level: of confidence.

    Example:
        >>> found = paired_difference({0: 2.0, 1: 3.0, 2: 5.0}, {0: 1.0, 1: 1.0, 2: 2.0})
        >>> found.n, found.mean, round(found.low, 3), round(found.high, 3)
        (3, 2.0, -0.484, 4.484)
    """
    n, mean, std = summary([row[seed] - reference[seed] for seed in row if seed in reference])
    half = float(t.ppf((1 + level) / 2, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan
    return Difference(n, mean, mean - half, mean + half)
