"""What a distiller satisfies unless its setting says what it lacks; each takes a distiller and asserts.

``outputs`` makes a network's Outputs of its logits (B, C), row by row: alone, or with features that they determine.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tiny import by_gamma

from lightning_biaskd import Distiller, Outputs


class Setting(NamedTuple):
    """How one distiller is tested.

    ``reference(s, t, y)`` is the loss of one sample, ``batch_reference(S, T, Y)`` the mean loss of a batch, for methods
    that have no other; one of them is given. ``lacks`` names the properties of this file that do not hold, each
    with the reason, as ``{property: why}``; a test fails if one of them does hold. ``outputs`` makes a
    network's Outputs of its logits, as above.
    """

    distiller: Distiller
    reference: Callable[..., float] | None = None
    lacks: Mapping[str, str] = {}
    batch_reference: Callable[..., float] | None = None
    outputs: Callable[[torch.Tensor], Outputs] = Outputs


def trained(distiller):
    """What a method learns."""
    return [parameter for parameter in distiller.parameters() if parameter.requires_grad]


def batch(rows=8, classes=6, shift=0.0):
    target = torch.randint(classes, (rows,))
    teacher = torch.randn(rows, classes, dtype=torch.float64) * 3 + shift * F.one_hot(target, classes)
    student = torch.randn(rows, classes, dtype=torch.float64)
    return student, teacher, target


def has_one_loss_per_sample(distiller, outputs=Outputs):
    for rows in (8, 1):
        student, teacher, target = batch(rows)
        losses = distiller(outputs(student), outputs(teacher), target)
        assert losses.shape == (rows,)
        assert losses.isfinite().all()


def is_zero_at_the_teacher(distiller, outputs=Outputs):
    _, teacher, target = batch()
    torch.testing.assert_close(
        distiller(outputs(teacher), outputs(teacher), target), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-10
    )


def permutes_with_the_batch(distiller, outputs=Outputs):
    student, teacher, target = batch()
    order = torch.randperm(8)
    losses = distiller(outputs(student), outputs(teacher), target)
    permuted = distiller(outputs(student[order]), outputs(teacher[order]), target[order])
    torch.testing.assert_close(permuted, losses[order])


def gives_each_sample_a_loss_of_its_own(distiller, outputs=Outputs):
    student, teacher, target = batch()
    losses = distiller(outputs(student), outputs(teacher), target)
    part = distiller(outputs(student[:3]), outputs(teacher[:3]), target[:3])
    torch.testing.assert_close(part, losses[:3])


def uses_no_dropped_teacher_row(distiller, outputs=Outputs):
    student, teacher, target = batch()
    keep = torch.tensor([True, False] * 4)
    seen = []
    for rows in (teacher, torch.where(keep[:, None], teacher, -5 * teacher.flip(1))):
        leaf = student.clone().requires_grad_()
        losses = torch.where(keep, distiller(outputs(leaf), outputs(rows), target, keep), 0)
        gradients = torch.autograd.grad(losses.sum(), [leaf, *trained(distiller)])
        assert (gradients[0][~keep] == 0).all()
        seen.append((losses.detach(), *gradients))
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def reaches_only_the_student(distiller, outputs=Outputs):
    student, teacher, target = batch()
    student.requires_grad_()
    distiller(outputs(student), outputs(teacher), target).mean().backward()
    assert student.grad.abs().sum() > 0
    assert not teacher.requires_grad


def equals_plain_under_a_teacher_that_is_right(distiller, outputs=Outputs):
    student, teacher, target = batch(shift=30.0)
    plain = distiller(outputs(student), outputs(teacher), target).mean()
    for mode in ("swap", "blend", "onehot", "revise", "none", "drop"):
        for normalize in ("group", "batch"):
            loss = by_gamma(mode, normalize)(distiller, outputs(student), outputs(teacher), target)
            torch.testing.assert_close(loss.total, plain)  # γ is 0


def is_finite_at_extreme_logits(distiller, outputs=Outputs):
    student = (torch.randn(4, 5) * 1e4).requires_grad_()
    distiller(outputs(student), outputs(torch.randn(4, 5) * 1e4), torch.arange(4)).mean().backward()
    assert student.grad.isfinite().all()


ALL = (
    has_one_loss_per_sample,
    is_zero_at_the_teacher,
    permutes_with_the_batch,
    gives_each_sample_a_loss_of_its_own,
    uses_no_dropped_teacher_row,
    reaches_only_the_student,
    equals_plain_under_a_teacher_that_is_right,
    is_finite_at_extreme_logits,
)
