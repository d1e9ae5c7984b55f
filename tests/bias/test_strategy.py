import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import CompilationCount, by_gamma

from lightning_biaskd import DKD, KD, Distiller, Needs, Outputs, WeightedSum
from lightning_biaskd.bias import partition

CASES = json.loads((Path(__file__).parents[1] / "reference" / "bias_vectors.json").read_text())["cases"]
MODES = ("swap", "blend", "onehot", "revise", "none", "drop")


class FeatureGap(Distiller):
    """A feature method: mean squared distance of one layer's features."""

    needs = Needs(layers=("layer",))
    reads = "features"

    def forward(self, student, teacher, target, keep=None):
        gap = student.features["layer"] - teacher.features["layer"]
        return gap.square().flatten(1).mean(1)


class PairGap(Distiller):
    """A pairwise method: squared difference of the similarity of two samples; half of a pair's term to each member."""

    reads = "features"

    def forward(self, student, teacher, target, keep=None):
        gap = (student.logits @ student.logits.T - teacher.logits @ teacher.logits.T).square()
        if keep is not None:
            gap = torch.where(keep[:, None] & keep[None, :], gap, 0)
        return gap.sum(1) / len(target)


def batch(rows=12, classes=5, dtype=torch.float64, shift=0.0):
    """A random batch; ``shift`` on the label's logit makes the teacher right (large) or wrong (very negative)."""
    target = torch.randint(classes, (rows,))
    teacher = torch.randn(rows, classes, dtype=dtype) * 2 + shift * F.one_hot(target, classes)
    student = torch.randn(rows, classes, dtype=dtype, requires_grad=True)
    feature = torch.randn(rows, 3, 2, 2, dtype=dtype)
    return (
        Outputs(student, {"layer": feature.clone().requires_grad_()}),
        Outputs(teacher, {"layer": torch.randn_like(feature)}),
        target,
    )


@pytest.mark.parametrize("case", CASES)
def test_losses_equal_the_reference_vectors(case):
    teacher = Outputs(torch.tensor(case["teacher_logits"], dtype=torch.float64))
    student = Outputs(torch.tensor(case["student_logits"], dtype=torch.float64))
    target = torch.tensor(case["target"])
    tau = case["temperature"]
    assert len(case["losses"]) == 36
    for loss in case["losses"]:
        bias = by_gamma(loss["mode"], loss["normalize"]).double()
        bias.gamma.fill_(loss["gamma"])
        actual = bias(KD(tau), student, teacher, target)
        ce = F.cross_entropy(student.logits, target)
        assert actual.right.item() / tau**2 == pytest.approx(loss["right"], abs=1e-9)
        assert actual.rectified.item() / tau**2 == pytest.approx(loss["rectified"], abs=1e-9)
        total = loss["lam"] * ce + (1 - loss["lam"]) * actual.total
        assert total.item() == pytest.approx(loss["total"], abs=1e-9)
        assert actual.wrong_rate.item() == pytest.approx(1 - sum(case["right"]) / len(target))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_ramp_keeps_right_knowledge_at_full_weight(gamma):
    student, teacher, target = batch()
    bias = by_gamma("swap", balance="ramp").double()
    bias.gamma.fill_(gamma)
    loss = bias(KD(), student, teacher, target)
    torch.testing.assert_close(loss.total, loss.right + gamma * loss.rectified)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_equal_weights_are_those_of_ramp_at_full_gamma(gamma):
    student, teacher, target = batch()
    bias, ramp = (by_gamma("swap", balance=balance).double() for balance in ("equal", "ramp"))
    bias.gamma.fill_(gamma)
    ramp.gamma.fill_(1.0)
    torch.testing.assert_close(bias(KD(), student, teacher, target).total, ramp(KD(), student, teacher, target).total)


def test_at_full_gamma_ramp_by_batch_is_the_mean_over_all_samples():
    student, teacher, target = batch()
    bias = by_gamma("none", normalize="batch", balance="ramp").double()
    bias.gamma.fill_(1.0)
    torch.testing.assert_close(bias(KD(), student, teacher, target).total, KD()(student, teacher, target).mean())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize", ["group", "batch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("space", ["probs", "logits"])
@pytest.mark.parametrize(("rows", "shift"), [(8, 30.0), (8, -30.0), (1, 30.0), (1, -30.0)])
def test_extreme_batches_are_finite_with_exact_zeros(mode, normalize, dtype, space, rows, shift):
    student, teacher, target = batch(rows, dtype=dtype, shift=shift)
    bias = by_gamma(mode, normalize, space=space)
    bias.gamma.fill_(0.4)
    loss = bias(WeightedSum([(KD(), 1.0), (DKD(), 1.0), (FeatureGap(), 1.0)]), student, teacher, target)
    assert all(value.isfinite() for value in loss[:4])
    assert loss.total.dtype == torch.float32
    assert (loss.rectified if shift > 0 else loss.right) == 0
    loss.total.backward()
    assert student.logits.grad.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distiller", [KD(1.0), DKD(temperature=1.0)])
def test_huge_logits_at_temperature_one_are_finite(mode, distiller):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (1e4 * (2 * torch.rand(8, 5, generator=generator) - 1) for _ in range(2))
    student.requires_grad_()
    bias = by_gamma(mode)
    bias.gamma.fill_(0.5)
    loss = bias(distiller, Outputs(student), Outputs(teacher), torch.arange(8) % 5)
    loss.total.backward()
    assert all(value.isfinite() for value in loss[:4])
    assert student.grad.isfinite().all()


def test_dropped_samples_add_nothing():
    student, teacher, target = batch()
    wrong = ~partition(teacher.logits, target)
    assert wrong.any()
    bias = by_gamma("drop").double()
    loss = bias(WeightedSum([(KD(), 1.0), (FeatureGap(), 1.0), (PairGap(), 1.0)]), student, teacher, target)
    loss.total.backward()
    assert (student.logits.grad[wrong] == 0).all()
    assert (student.features["layer"].grad[wrong] == 0).all()
    assert (student.logits.grad[~wrong] != 0).any()


def test_gamma_leaves_feature_methods_alone_and_they_may_be_kept():
    student, teacher, target = batch()
    losses = FeatureGap()(student, teacher, target)
    right = partition(teacher.logits, target)
    for gamma in (0.0, 0.7):
        for normalize, expected in (("group", losses[right].mean()), ("batch", losses[right].sum() / len(right))):
            bias = by_gamma("blend", normalize).double()
            bias.gamma.fill_(gamma)
            loss = bias(FeatureGap(), student, teacher, target)
            torch.testing.assert_close(loss.total, expected)
            assert loss.rectified == 0
        kept = by_gamma(features="keep").double()
        kept.gamma.fill_(gamma)
        torch.testing.assert_close(kept(FeatureGap(), student, teacher, target).total, losses.mean())


def test_a_weighted_sum_is_treated_part_by_part():
    student, teacher, target = batch()
    bias = by_gamma().double()
    bias.gamma.fill_(0.3)
    parts = [(KD(2.0), 0.5), (DKD(), 2.0), (FeatureGap(), 3.0)]
    together = bias(WeightedSum(parts), student, teacher, target)
    alone = [(bias(part, student, teacher, target), weight) for part, weight in parts]
    for field in ("total", "right", "rectified"):
        expected = sum(weight * getattr(loss, field) for loss, weight in alone)
        torch.testing.assert_close(getattr(together, field), expected)


@pytest.mark.parametrize("argument", ["mode", "normalize", "balance", "space", "features"])
def test_unknown_words_are_refused(argument):
    with pytest.raises(ValueError, match=f"unknown {argument} 'nonsense': choose "):
        by_gamma(**{argument: "nonsense"})


def test_gamma_is_in_no_state_dict():
    assert not by_gamma().state_dict()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distiller", [KD(), DKD(), WeightedSum([(KD(), 1.0), (FeatureGap(), 2.0)])])
def test_compiles_once_while_gamma_moves(mode, distiller):
    count = CompilationCount()
    bias = by_gamma(mode).double()
    step = torch.compile(lambda *args: bias(distiller, *args), backend=count, fullgraph=True)
    for i in range(10):
        student, teacher, target = batch()
        bias.gamma.fill_(i / 9)
        distiller.set_epoch(i)
        torch.testing.assert_close(step(student, teacher, target), bias(distiller, student, teacher, target))
    assert count.graphs == 1
