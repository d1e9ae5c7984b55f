import json
from pathlib import Path

import pytest

from lightning_biaskd import bias

COSINE = json.loads((Path(__file__).parents[1] / "reference" / "bias_vectors.json").read_text())["schedule_cosine"]


@pytest.mark.parametrize(("t", "gamma"), COSINE.items())
def test_cosine_equals_the_reference_vectors(t, gamma):
    assert bias.cosine(float(t)) == pytest.approx(gamma, abs=1e-12)
    assert bias.reversed_cosine(float(t)) == pytest.approx(1 - gamma, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear", "step", "constant", "reversed_cosine"])
def test_schedules_stay_in_the_unit_interval_and_are_monotone(name):
    values = [getattr(bias, name)(i / 100) for i in range(101)]
    assert all(0 <= value <= 1 for value in values)
    assert sorted(values, reverse=name == "reversed_cosine") == values


def test_ends():
    assert (bias.linear(0.25), bias.step(0.49), bias.step(0.5), bias.constant(0.0)) == (0.25, 0.0, 1.0, 1.0)
