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
    setting = SETTINGS[name]
    if prop.__name__ in setting.lacks:
        with pytest.raises(AssertionError):
            prop(setting.distiller)
    else:
        prop(setting.distiller)


@pytest.mark.parametrize("name", SETTINGS)
def test_lacks_only_known_properties(name):
    assert set(SETTINGS[name].lacks) <= {prop.__name__ for prop in ALL}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_slow_reference(name):
    setting = SETTINGS[name]
    student, teacher, target = batch(rows=20)
    rows = student.tolist(), teacher.tolist(), target.tolist()
    actual = setting.distiller(Outputs(student), Outputs(teacher), target)
    if setting.reference:
        expected = [setting.reference(s, t, y) for s, t, y in zip(*rows, strict=True)]
    else:
        actual, expected = actual.mean(), setting.batch_reference(*rows)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_half_precision_is_lifted(name):
    student, teacher, target = batch()
    losses = SETTINGS[name].distiller(Outputs(student.bfloat16()), Outputs(teacher.bfloat16()), target)
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
