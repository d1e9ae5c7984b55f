"""What PLD does beyond the common properties."""

import pytest
import torch
import torch.nn.functional as F
from properties import batch
from tiny import by_gamma

from lightning_biaskd.distillers import PLD, pld_loss
from lightning_biaskd.training.step import Distillation


def test_with_a_sure_and_right_teacher_it_is_cross_entropy():
    student, teacher, target = batch(shift=1000.0)
    expected = F.cross_entropy(student, target, reduction="none")
    torch.testing.assert_close(pld_loss(student, teacher, target, 1.0), expected)


def test_a_constant_on_all_logits_of_a_sample_changes_nothing():
    student, teacher, target = batch()
    shifts = 10 * torch.randn(2, 8, 1, dtype=torch.float64)
    expected = pld_loss(student, teacher, target, 4.0)
    torch.testing.assert_close(pld_loss(student + shifts[0], teacher + shifts[1], target, 4.0), expected)


def test_a_wrong_teacher_raises_the_label_and_never_lowers_it():
    teacher, target = torch.tensor([[5.0, 3.0, 1.0, 0.0]]), torch.tensor([2])
    student = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(pld_loss(student, teacher, target, 4.0).sum(), student)
    q = (teacher / 4).softmax(1)[0]
    # the label is chosen among 4 classes, then class 0 among 3, then 1 among 2
    expected = [q[2] / 4 + q[0] / 3 - q[0], q[2] / 4 + q[0] / 3 + q[1] / 2 - q[1], q[2] / 4 - q[2]]
    expected.append(q[2] / 4 + q[0] / 3 + q[1] / 2)
    torch.testing.assert_close(gradient[0], torch.stack(expected))


def test_equal_logits_are_ranked_by_class():
    student = torch.tensor([[0.3, -0.2, 1.5, 0.0]])
    even, ranked = torch.zeros(1, 4), torch.tensor([[3e-6, 2e-6, 1e-6, 0.0]])
    target = torch.tensor([3])
    torch.testing.assert_close(pld_loss(student, even, target, 1.0), pld_loss(student, ranked, target, 1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    student, teacher, target = batch(classes=1000)
    student, teacher = student.to(dtype), teacher.to(dtype)
    loss = pld_loss(student, teacher, target, 4.0)
    assert loss.dtype == torch.float32
    exact = pld_loss(student.double(), teacher.double(), target, 4.0)
    torch.testing.assert_close(loss, exact.float())


def test_without_cross_entropy_a_dropped_sample_needs_the_refund():
    torch.manual_seed(0)
    input, teacher = torch.randn(4, 3), torch.nn.Linear(3, 3)
    target = (teacher(input).argmax(1) + 1) % 3  # wrong on every sample
    for refund, teaches in ((False, False), (True, True)):
        student = torch.nn.Linear(3, 3)
        bias = by_gamma("drop", "batch", "ramp", refund=refund)
        step = Distillation(student, teacher, PLD(), bias, ce_weight=0.0, kd_weight=1.0)(input, target)
        step.loss.backward()
        assert (student.weight.grad.abs().sum() > 0) == teaches
        if teaches:
            torch.testing.assert_close(step.loss, F.cross_entropy(student(input), target))
