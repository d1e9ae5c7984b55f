"""Trust against a slow reference, in its range, and at its limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, CompilationCount, by_gamma, network

from lightning_biaskd import KD, Outputs, UserError, WeightedSum
from lightning_biaskd.bias import partition, trust
from lightning_biaskd.distillers import FitNet, LabelSmoothing
from lightning_biaskd.training.step import Distillation

FORMS = {"student": trust.student, "wsld": trust.wsld, "bounded": trust.bounded}


def cross_entropy(row, label):
    return math.log(sum(math.exp(z - max(row)) for z in row)) + max(row) - row[label]


SLOW = {
    "student": lambda s, t: 1 / (1 + math.exp(-(s - t) / 0.5)),
    "wsld": lambda s, t: 1 - math.exp(-s / t),
    "bounded": lambda s, t: float(t <= s),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_slow_reference(name, dtype):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(40, 7, generator=generator).double() for _ in "ab")
    student, teacher = student.to(dtype), teacher.to(dtype)
    target = torch.randint(7, (40,), generator=generator)
    rows = zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True)
    expected = [SLOW[name](cross_entropy(s, y), cross_entropy(t, y)) for s, t, y in rows]
    actual = FORMS[name](student, teacher, target)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", FORMS)
def test_it_lies_in_the_unit_interval_and_has_no_gradient(name):
    student = torch.tensor([[1e4, 0.0], [0.0, 1e4], [0.0, 0.0]], requires_grad=True)
    target = torch.zeros(3, dtype=torch.long)
    for teacher in (student.detach(), student.detach().flip(1), torch.zeros(3, 2)):
        values = FORMS[name](student, teacher, target)
        assert values.shape == (3,)
        assert bool(((values >= 0) & (values <= 1)).all())
        assert not values.requires_grad


@pytest.mark.parametrize("name", FORMS)
def test_a_better_teacher_is_trusted_more(name):
    student, target = torch.zeros(5, 2), torch.zeros(5, dtype=torch.long)
    margins = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0])
    values = FORMS[name](student, torch.stack([margins, torch.zeros(5)], 1), target)
    assert bool((values.diff() >= 0).all())
    assert values[-1] > values[0]


def test_scale_and_margin_are_used():
    student, teacher = torch.zeros(1, 2), torch.tensor([[-0.5, 0.0]])
    target = torch.tensor([0])
    assert trust.student(student, teacher, target, scale=10.0) > trust.student(student, teacher, target)
    assert trust.bounded(student, teacher, target) == 0
    assert trust.bounded(student, teacher, target, margin=0.5) == 1


IMAGE, TARGET = torch.randn(16, 1, 6, 6), torch.arange(16) % CLASSES


@pytest.mark.parametrize("form", [None, "student", "wsld", "bounded"])
@pytest.mark.parametrize("mode", ["swap", "drop", "none"])
@pytest.mark.parametrize("balance", ["ramp", "complement"])
def test_the_refunded_loss_is_its_sum_over_samples(form, mode, balance):
    bias = by_gamma(mode, "batch", balance, trust=form, refund=True)
    step = Distillation(network(), network(), KD(2.0), bias, ce_weight=0.4, kd_weight=0.7).double().eval()
    step.bias.gamma.fill_(0.3)
    image = IMAGE.double()
    student, teacher = step.student(image), step.teacher(image).logits
    right = partition(teacher, TARGET)
    assert 0 < right.sum() < 16
    corrected = step.bias.rectified(step.distiller, teacher, TARGET)
    losses = KD(2.0)(Outputs(student), Outputs(teacher if corrected is None else corrected), TARGET)
    easy, hard = (1.0 if balance == "ramp" else 0.7), (0.0 if mode == "drop" else 0.3)
    expected = 0.0
    for n in range(16):
        a = easy if right[n] else hard
        if form is not None:
            a *= FORMS[form](student[n : n + 1], teacher[n : n + 1], TARGET[n : n + 1]).item()
        ce = F.cross_entropy(student[n : n + 1], TARGET[n : n + 1])
        expected = expected + ((0.4 + 0.7 * (1 - a)) * ce + 0.7 * a * losses[n]) / 16
    result = step(image, TARGET)
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-12)
    assert torch.autograd.grad(result.loss, next(step.student.parameters()))[0].any()


def test_without_trust_and_refund_nothing_changes():
    torch.manual_seed(0)
    student, teacher = network(), network()
    plain = Distillation(student, teacher, bias=by_gamma("swap", "batch", "ramp")).eval()
    trusted = Distillation(student, teacher, bias=by_gamma("swap", "batch", "ramp", trust="student")).eval()
    for step in (plain, trusted):
        step.bias.gamma.fill_(1.0)
    assert plain(IMAGE, TARGET).loss > trusted(IMAGE, TARGET).loss
    assert "trust" not in repr(plain.bias)
    assert "trust='student'" in repr(trusted.bias)


def test_every_kind_of_method_is_trusted_by_its_kind():
    method = WeightedSum([(KD(), 1.0), (FitNet(layers="2"), 10.0), (LabelSmoothing(), 1.0)])
    bias = by_gamma("drop", "batch", "ramp", trust="bounded", refund=True)
    step = Distillation(network(), network(), method, bias)
    step.rehearse(IMAGE)
    loss = step.eval().bias(step.distiller, step.outputs_of(IMAGE), step.teacher(IMAGE), TARGET)
    right = partition(step.teacher(IMAGE).logits, TARGET)
    trusted = trust.bounded(step.student(IMAGE), step.teacher(IMAGE).logits, TARGET)
    torch.testing.assert_close(loss.trust, torch.where(right, (2 * trusted + 1) / 3, torch.tensor(1 / 3)))
    assert step(IMAGE, TARGET).loss.isfinite()


def test_it_compiles_in_one_graph_and_gamma_moves_without_another():
    count = CompilationCount()
    bias = by_gamma("swap", "batch", "ramp", trust="student", refund=True)
    student, teacher = Outputs(torch.randn(8, 5)), Outputs(torch.randn(8, 5))
    torch._dynamo.reset()
    bias.compile(fullgraph=True, backend=count)
    for gamma in (0.0, 0.5, 1.0):
        bias.gamma.fill_(gamma)
        bias(KD(), student, teacher, torch.arange(8) % 5)
    assert count.graphs == 1


def test_what_cannot_be_refunded_is_one_line():
    with pytest.raises(UserError, match="refund needs normalize='batch'"):
        by_gamma(refund=True)
    with pytest.raises(UserError, match="unknown trust 'teacher': choose student, wsld, bounded, run, class, None"):
        by_gamma(trust="teacher")
