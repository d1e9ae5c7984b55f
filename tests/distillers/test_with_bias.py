"""The strategy around every exported distiller."""

import copy
import itertools

import pytest
import torch
from properties import batch, trained
from settings import SETTINGS
from tiny import CompilationCount, by_gamma

from lightning_biaskd.bias import partition

MODES = ("swap", "blend", "onehot", "revise", "none", "drop")
SOME_RIGHT = 4.0
every_distiller = pytest.mark.parametrize("name", SETTINGS)
every_mode = pytest.mark.parametrize("mode", MODES)


def strategy(mode, gamma=0.3, **kwargs):
    bias = by_gamma(mode, **kwargs).double()
    bias.gamma.fill_(gamma)
    return bias


def outputs(name, rows=8, shift=SOME_RIGHT):
    student, teacher, target = batch(rows, shift=shift)
    make = SETTINGS[name].outputs
    return make(student.requires_grad_()), make(teacher), target


@every_distiller
@pytest.mark.parametrize(("rows", "shift"), [(8, SOME_RIGHT), (8, 30.0), (8, -30.0), (1, 30.0), (1, -30.0)])
def test_is_finite_and_reaches_the_student_and_what_the_method_learns(name, rows, shift):
    distiller = SETTINGS[name].distiller
    for mode, normalize in itertools.product(MODES, ("group", "batch")):
        student, teacher, target = outputs(name, rows, shift)
        loss = strategy(mode, normalize=normalize)(distiller, student, teacher, target)
        assert all(value.isfinite() for value in loss[:4]), (mode, normalize)
        gradients = torch.autograd.grad(loss.total, [student.logits, *trained(distiller)])
        assert all(gradient.isfinite().all() for gradient in gradients), (mode, normalize)
        if shift == SOME_RIGHT:
            assert all(gradient.any() for gradient in gradients), (mode, normalize)


@every_distiller
def test_all_right_is_the_plain_method(name):
    distiller = SETTINGS[name].distiller
    for mode in MODES:
        student, teacher, target = outputs(name, shift=30.0)
        loss = strategy(mode)(distiller, student, teacher, target)
        plain = distiller(student, teacher, target).mean().detach()
        torch.testing.assert_close(loss.right, plain, msg=lambda said, mode=mode: f"{mode}: {said}")
        assert loss.rectified == 0, mode
        assert loss.wrong_rate == 0, mode
        torch.testing.assert_close(loss.total, (0.7 if distiller.reads == "logits" else 1.0) * loss.right)


@every_distiller
def test_dropped_samples_add_nothing(name):
    distiller = SETTINGS[name].distiller
    student, teacher, target = outputs(name)
    wrong = ~partition(teacher.logits, target)
    assert wrong.any()
    assert not wrong.all()
    loss = strategy("drop")(distiller, student, teacher, target)
    (gradient,) = torch.autograd.grad(loss.total, [student.logits])
    if distiller.reads != "nothing":
        assert (gradient[wrong] == 0).all()
        other = SETTINGS[name].outputs(torch.where(wrong[:, None], 2 * teacher.logits, teacher.logits))
        assert strategy("drop")(distiller, student, other, target).total == loss.total
    else:
        assert (gradient[wrong] != 0).any()


@pytest.mark.parametrize("name", [name for name in SETTINGS if SETTINGS[name].distiller.reads == "nothing"])
@every_mode
def test_a_method_that_reads_no_teacher_is_left_alone(name, mode):
    distiller = SETTINGS[name].distiller
    student, teacher, target = outputs(name)
    loss = strategy(mode)(distiller, student, teacher, target)
    torch.testing.assert_close(loss.total, distiller(student, teacher, target).mean())


@pytest.mark.parametrize(
    ("name", "mode"),  # the other modes differ in arithmetic, not in path; of features, wrong rows are always dropped
    [(name, "blend") for name in SETTINGS] + [(name, "drop") for name in ("KD", "DKD", "DIST")],
)
def test_compiles_once_while_gamma_moves(name, mode):
    distiller = copy.deepcopy(SETTINGS[name].distiller)
    count = CompilationCount()
    bias = by_gamma(mode).double()
    make = SETTINGS[name].outputs
    step = torch.compile(lambda s, t, y: bias(distiller, make(s), make(t), y), backend=count, fullgraph=True)
    for epoch, gamma in enumerate((0.0, 0.4, 1.0)):
        student, teacher, target = outputs(name)
        bias.gamma.fill_(gamma)
        distiller.set_epoch(epoch)
        actual = step(student.logits, teacher.logits, target)
        torch.testing.assert_close(actual, bias(distiller, student, teacher, target))
    assert count.graphs == 1
