import inspect

import pytest
import torch
from properties import ALL, batch
from settings import SETTINGS

from lightning_biaskd import DKD, KD, Distiller, Outputs, WeightedSum, distillers


def test_the_settings_cover_every_exported_distiller():
    exported = {
        name
        for name in distillers.__all__
        if inspect.isclass(value := getattr(distillers, name)) and issubclass(value, Distiller)
    }
    assert exported - {"Distiller"} == set(SETTINGS)


@pytest.mark.parametrize("prop", ALL, ids=lambda prop: prop.__name__)
@pytest.mark.parametrize("name", SETTINGS)
def test_property(name, prop):
    prop(SETTINGS[name][0])


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_slow_reference(name):
    distiller, reference = SETTINGS[name]
    student, teacher, target = batch(rows=20)
    expected = [reference(s, t, y) for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True)]
    actual = distiller(Outputs(student), Outputs(teacher), target)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_half_precision_is_lifted(name):
    student, teacher, target = batch()
    losses = SETTINGS[name][0](Outputs(student.bfloat16()), Outputs(teacher.bfloat16()), target)
    assert losses.dtype == torch.float32


def test_kd_carries_the_square_of_the_temperature():
    student, teacher, target = batch()
    hot = KD(8.0)(Outputs(student), Outputs(teacher), target)
    plain = KD(1.0)(Outputs(student / 8), Outputs(teacher / 8), target)
    torch.testing.assert_close(hot, 64 * plain)


def test_dkd_warms_up_by_the_epoch_alone():
    student, teacher, target = batch()
    dkd = DKD(warmup_epochs=20)
    full = dkd(Outputs(student), Outputs(teacher), target)
    for epoch, factor in ((0, 1 / 20), (9, 0.5), (19, 1.0), (50, 1.0), (4, 0.25)):
        WeightedSum([(dkd, 1.0)]).set_epoch(epoch)
        torch.testing.assert_close(dkd(Outputs(student), Outputs(teacher), target), factor * full)
    assert not dkd.state_dict()


def test_refusals():
    with pytest.raises(ValueError, match="temperature must be positive"):
        KD(0.0)
    with pytest.raises(ValueError, match="at least one"):
        WeightedSum([])
