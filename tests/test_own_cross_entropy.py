"""A cross-entropy of the user's own: weighed sample by sample, as ours is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_biaskd import KD, BiasStrategy, ClassificationModule, DistillationModule, Outputs, UserError
from lightning_biaskd.distillers import FitNet, LabelSmoothing, TeacherFree, WeightedSum
from lightning_biaskd.training.step import Distillation

LOGITS = torch.tensor([[2.0, 0.5, 0.0], [0.3, 0.1, 0.2], [0.1, 1.0, 0.4]])
TEACHER = torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # wrong, right, wrong
TARGET = torch.tensor([0, 0, 1])


class Focal(DistillationModule):
    def cross_entropy(self, logits, target):
        ce = F.cross_entropy(logits, target, reduction="none")
        return (1 - (-ce).exp()).square() * ce


class Averaged(DistillationModule):
    def cross_entropy(self, logits, target):
        return F.cross_entropy(logits, target, weight=torch.tensor([1.0, 2.0, 3.0]))


class Column(DistillationModule):
    def cross_entropy(self, logits, target):
        return F.cross_entropy(logits, target, reduction="none").unsqueeze(1)


def untrusted_labels():
    """The default, with labels that lose half of their weight where the teacher contradicts them."""
    bias = BiasStrategy()
    bias.running_labels.counts.copy_(torch.tensor([[3000.0], [0.0], [2000.0]]))
    return bias.eval()


def step_of(kind, bias, **options):
    module = kind(nn.Linear(3, 3), nn.Linear(3, 3), bias=bias, **options).eval()
    return module.distillation.step(Outputs(LOGITS.clone().requires_grad_()), Outputs(TEACHER), TARGET)


def test_a_discount_weighs_the_own_loss():
    bias = untrusted_labels()
    step = step_of(Focal, bias)
    p = LOGITS.softmax(1)[torch.arange(3), TARGET]
    focal = (1 - p).square() * -p.log()
    labels = bias.running_labels(TARGET)
    trust = bias.running(TARGET)
    weights = torch.where(torch.tensor([True, False, True]), 1 - 0.5 * trust * (1 - labels), 1.0)
    assert weights.min() < 0.8
    torch.testing.assert_close(step.logged["train/loss_ce"], focal.mean())
    kd = step.logged["train/loss_kd"]
    torch.testing.assert_close(step.loss.detach(), (weights * focal).mean() + 0.5 * kd)


def test_a_label_is_never_pushed_away():
    step = step_of(Focal, untrusted_labels())
    (gradient,) = torch.autograd.grad(step.loss, step.student.logits)
    kd_only = step_of(Focal, untrusted_labels(), ce_weight=0.0)
    (without,) = torch.autograd.grad(kd_only.loss, kd_only.student.logits)
    assert ((gradient - without)[torch.arange(3), TARGET] < 0).all()


@pytest.mark.parametrize("ce_weight", [0.0, 1.0])
def test_a_mean_is_taken_where_no_sample_is_weighed_and_refused_elsewhere(ce_weight):
    step = step_of(Averaged, None, ce_weight=ce_weight)
    expected = F.cross_entropy(LOGITS, TARGET, weight=torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(step.logged["train/loss_ce"], expected)
    step_of(Averaged, BiasStrategy(discount=0.0), ce_weight=ce_weight)
    for bias in (BiasStrategy(), BiasStrategy(discount=0.0, refund=True)):
        with pytest.raises(UserError, match=r"gives a mean.*reduction='none'.*bias\.discount 0"):
            step_of(Averaged, bias, ce_weight=ce_weight)


def test_losses_that_would_be_broadcast_are_refused():
    with pytest.raises(UserError, match=r"cross_entropy gives \(3, 1\): return a loss for each sample, \(3,\)"):
        step_of(Column, BiasStrategy())

    class Alone(ClassificationModule):
        cross_entropy = Column.cross_entropy

    with pytest.raises(UserError, match=r"return a loss for each sample, \(3,\)"):
        Alone(nn.Linear(3, 3)).losses((LOGITS, TARGET), 1)


@pytest.mark.parametrize(
    ("distiller", "options"),
    [
        (KD(), {"kd_weight": 0.0}),
        (LabelSmoothing(), {}),
        (TeacherFree(), {}),
        (WeightedSum([(TeacherFree(), 1.0), (LabelSmoothing(), 2.0)]), {}),
    ],
)
def test_where_no_answer_is_corrected_labels_keep_their_weight(distiller, options):
    bias, nets = untrusted_labels(), (nn.Identity(), nn.Identity())
    with_strategy = (
        Distillation(*nets, distiller, bias, **options).eval().step(Outputs(LOGITS), Outputs(TEACHER), TARGET)
    )
    without = Distillation(*nets, distiller, None, **options).eval().step(Outputs(LOGITS), Outputs(TEACHER), TARGET)
    torch.testing.assert_close(with_strategy.loss, without.loss)


def test_a_method_on_features_keeps_the_cross_entropy_of_dropped_samples():
    maps = torch.randn(3, 2, 4, 4)
    student, teacher = (Outputs(logits, {"0": maps}) for logits in (LOGITS, TEACHER))
    fitnet = FitNet(layers=["0"])
    fitnet.build(student, teacher)
    right = torch.tensor([False, True, False])
    loss = untrusted_labels()(fitnet, student, teacher, TARGET)
    assert loss.discount is None
    assert loss.label_trust is None
    assert torch.equal(loss.trust > 0, right)
    both = untrusted_labels()(WeightedSum([(fitnet, 1.0), (KD(), 1.0)]), student, teacher, TARGET)
    assert torch.equal(both.discount > 0, ~right)
