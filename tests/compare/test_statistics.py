import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from lightning_biaskd.compare.statistics import paired_difference, summary


def test_a_summary_is_numpys():
    values = [91.2, 90.4, 92.0, 89.9]
    n, mean, std = summary(values)
    assert (n, mean, std) == (4, pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert summary([3.0])[:2] == (1, 3.0)
    assert math.isnan(summary([3.0]).std)
    assert math.isnan(summary([]).mean)


@pytest.mark.parametrize("level", [0.95, 0.9])
def test_the_interval_is_that_of_scipys_paired_test(level):
    rng = np.random.default_rng(0)
    a, b = rng.normal(90, 1, 5), rng.normal(89, 1, 5)
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)), level)
    expected = ttest_rel(a, b).confidence_interval(level)
    assert found.mean == pytest.approx((a - b).mean())
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_only_seeds_that_both_have_are_paired():
    found = paired_difference({0: 1.0, 1: 3.0, 7: 100.0}, {1: 1.0, 0: 0.0, 2: -100.0})
    assert (found.n, found.mean) == (2, 1.5)
    one = paired_difference({0: 2.0}, {0: 1.0})
    assert one[:2] == (1, 1.0)
    assert math.isnan(one.low)
    assert paired_difference({0: 1.0}, {1: 1.0}).n == 0
