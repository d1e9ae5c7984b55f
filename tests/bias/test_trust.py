"""Trust against a slow reference, in its range, and at its limits."""

import math

import pytest
import torch

from lightning_biaskd.bias import trust

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
