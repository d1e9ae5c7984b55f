import inspect

import pytest
import torch
import torch.nn.functional as F
from properties import ALL, batch
from settings import SETTINGS
from tiny import by_gamma

from lightning_biaskd import (
    DKD,
    KD,
    DistillationModule,
    Distiller,
    Needs,
    Outputs,
    WeightedSum,
    distillers,
)
from lightning_biaskd.bias import rectify_logits
from lightning_biaskd.distillers import DIST, TTM, LabelSmoothing, LogitStandardization, standardize, wsld_loss


def test_the_settings_cover_every_exported_distiller():
    exported = {
        name
        for name in distillers.__all__
        if inspect.isclass(value := getattr(distillers, name)) and issubclass(value, Distiller)
    }
    assert exported - {"Distiller", "FeatureDistiller", "CWD"} == set(
        SETTINGS
    )  # CWD takes maps: tests/bias/test_rows.py


@pytest.mark.parametrize("prop", ALL, ids=lambda prop: prop.__name__)
@pytest.mark.parametrize("name", SETTINGS)
def test_property(name, prop):
    setting = SETTINGS[name]
    if prop.__name__ in setting.lacks:
        with pytest.raises(AssertionError):
            prop(setting.distiller, setting.outputs)
    else:
        prop(setting.distiller, setting.outputs)


@pytest.mark.parametrize("name", SETTINGS)
def test_lacks_only_known_properties(name):
    assert set(SETTINGS[name].lacks) <= {prop.__name__ for prop in ALL}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_slow_reference(name):
    setting = SETTINGS[name]
    student, teacher, target = batch(rows=20)
    rows = student.tolist(), teacher.tolist(), target.tolist()
    actual = setting.distiller(setting.outputs(student), setting.outputs(teacher), target)
    if setting.reference:
        expected = [setting.reference(s, t, y) for s, t, y in zip(*rows, strict=True)]
    else:
        actual, expected = actual.mean(), setting.batch_reference(*rows)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_half_precision_is_lifted(name):
    student, teacher, target = batch()
    distiller, outputs = SETTINGS[name].distiller, SETTINGS[name].outputs
    losses = distiller(outputs(student.bfloat16()), outputs(teacher.bfloat16()), target)
    assert losses.dtype == torch.float32


def test_kd_carries_the_square_of_the_temperature():
    student, teacher, target = batch()
    hot = KD(8.0)(Outputs(student), Outputs(teacher), target)
    plain = KD(1.0)(Outputs(student / 8), Outputs(teacher / 8), target)
    torch.testing.assert_close(hot, 64 * plain)


class Own(Distiller):
    def forward(self, student, teacher, target, keep=None):
        return (student.logits - teacher.logits).square().mean(1)


@pytest.mark.parametrize("wrap", [lambda method: method, LogitStandardization, lambda m: WeightedSum([(m, 1.0)])])
@pytest.mark.parametrize("bias", [by_gamma("swap"), by_gamma("none", "batch", "ramp"), None])
def test_any_method_can_warm_up(wrap, bias):
    totals, (student, teacher, target) = [], batch()
    for method in (wrap(Own()), wrap(Own(warmup_epochs=4))):
        method.set_epoch(0)
        answers = Outputs(student), Outputs(teacher)
        if bias is None:
            module = DistillationModule(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), method, None)
            module.distiller.set_epoch(0)
            totals.append(module.distillation.step(*answers, target).logged["train/loss_kd"])
        else:
            totals.append(bias(method, *answers, target).total)
    assert totals[0] > 0
    torch.testing.assert_close(4 * totals[1], totals[0])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_with_dropped_samples_is_dist_of_the_others(temperature):
    student, teacher, target = batch()
    keep = torch.tensor([True, True, False, True, False, True, True, False])
    dist = DIST(temperature=temperature)
    losses = dist(Outputs(student), Outputs(teacher), target, keep)
    torch.testing.assert_close(losses[keep], dist(Outputs(student[keep]), Outputs(teacher[keep]), target[keep]))
    assert (losses[~keep] == 0).all()
    assert (losses[keep] > 0).all()


def test_dist_of_one_sample_finds_no_relation_in_the_batch():
    student, teacher, target = batch(rows=1)
    loss = DIST(beta=0.0, gamma=1.0, temperature=2.0)(Outputs(student), Outputs(teacher), target)
    torch.testing.assert_close(loss, torch.tensor([4.0], dtype=torch.float64))


def test_dist_is_finite_where_nothing_is_kept():
    student, teacher, target = batch()
    student.requires_grad_()
    losses = DIST()(Outputs(student), Outputs(teacher), target, torch.zeros(8, dtype=torch.bool))
    losses.sum().backward()
    assert (losses == 0).all()
    assert (student.grad == 0).all()


def test_standardizing_commutes_with_swap_alone():
    _, teacher, target = batch()
    for mode, commutes in (("swap", True), ("blend", False)):
        before = standardize(rectify_logits(teacher, target, mode, 2.0))
        after = rectify_logits(standardize(teacher), target, mode, 2.0)
        assert torch.allclose(before, after) == commutes


def test_logit_standardization_stands_for_its_inner_method():
    inner = DKD(temperature=2.0, warmup_epochs=20)
    outer = LogitStandardization(inner, weight=3.0)
    outer.set_epoch(9)
    assert inner.ramp == 0.5
    assert (outer.temperature, outer.needs, outer.reads) == (2.0, Needs(), "logits")
    assert LogitStandardization(LabelSmoothing()).reads == "nothing"
    student, teacher, target = batch()
    shifted = Outputs(5 * student + 7), Outputs(0.1 * teacher - 2)
    torch.testing.assert_close(
        outer(*shifted, target), outer(Outputs(student), Outputs(teacher), target), rtol=1e-5, atol=0
    )


def test_wsld_weighs_without_gradient():
    student, teacher, target = batch()
    student.requires_grad_()
    wsld_loss(student, teacher, target, 4.0).sum().backward()
    p_s, p_t = (student.detach() / 4).softmax(1), (teacher / 4).softmax(1)
    ratio = F.cross_entropy(student.detach(), target, reduction="none") / F.cross_entropy(
        teacher, target, reduction="none"
    )
    torch.testing.assert_close(student.grad, 4 * (1 - (-ratio).exp()).unsqueeze(1) * (p_s - p_t), rtol=1e-5, atol=0)


def test_refusals():
    with pytest.raises(ValueError, match="in a sum, wrap each part"):
        LogitStandardization(WeightedSum([(KD(), 1.0)]))
    with pytest.raises(ValueError, match="exponent must be positive"):
        TTM(0.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        KD(0.0)
    with pytest.raises(ValueError, match="at least one"):
        WeightedSum([])
