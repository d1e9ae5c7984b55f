import json
from pathlib import Path

import pytest
import torch

from lightning_biaskd.bias import partition, rectify, rectify_logits

CASES = json.loads((Path(__file__).parents[1] / "reference" / "bias_vectors.json").read_text())["cases"]
MODES = ("swap", "blend", "onehot", "revise", "none")


def tensors(case):
    z = torch.tensor(case["teacher_logits"], dtype=torch.float64)
    return z, torch.tensor(case["target"]), case["temperature"]


def random_case(rows=500, classes=7, dtype=torch.float64):
    z = torch.randn(rows, classes, dtype=dtype) * 4
    return z, torch.randint(classes, (rows,))


@pytest.mark.parametrize("case", CASES)
def test_partition_equals_the_reference_vectors(case):
    z, target, _ = tensors(case)
    assert partition(z, target).tolist() == case["right"]


def test_a_tie_is_right():
    z = torch.tensor([[3.0, 3.0, 1.0], [3.0, 3.0, 1.0], [3.0, 3.0, 1.0]])
    assert partition(z, torch.tensor([0, 1, 2])).tolist() == [True, True, False]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", ["swap", "blend", "onehot", "revise"])
def test_rectified_probabilities_equal_the_reference_vectors(case, mode):
    z, target, temperature = tensors(case)
    expected = torch.tensor(case["rectified_probs"][mode], dtype=torch.float64)
    torch.testing.assert_close(rectify((z / temperature).softmax(1), target, mode), expected, rtol=0, atol=1e-9)
    through_logits = (rectify_logits(z, target, mode, temperature) / temperature).softmax(1)
    torch.testing.assert_close(through_logits, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_scripts_blend_of_logits_equals_the_reference_vectors(case):
    z, target, temperature = tensors(case)
    expected = torch.tensor(case["blend_logits_space"], dtype=torch.float64)
    actual = rectify_logits(z, target, "blend", temperature, space="logits")
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("swap", (0.15, 0.30, 0.50, 0.05)),
        ("blend", (0.19697, 0.30, 0.45303, 0.05)),
        ("onehot", (0.25, 0.15, 0.575, 0.025)),
    ],
)
def test_the_worked_example(mode, expected):
    p = torch.tensor([[0.50, 0.30, 0.15, 0.05]], dtype=torch.float64)
    torch.testing.assert_close(
        rectify(p, torch.tensor([2]), mode), torch.tensor([expected], dtype=torch.float64), rtol=0, atol=5e-6
    )


def test_blend_may_leave_the_label_below_a_third_class():
    p = torch.tensor([[0.40, 0.39, 0.01, 0.20]])
    rectified = rectify(p, torch.tensor([2]), "blend")
    torch.testing.assert_close(rectified, torch.tensor([[0.11631, 0.39, 0.29369, 0.20]]), rtol=0, atol=1e-5)
    assert rectified.argmax().item() == 1


@pytest.mark.parametrize("mode", MODES)
def test_rectified_rows_are_distributions_and_right_rows_are_untouched(mode):
    z, target = random_case()
    p = z.softmax(1)
    rectified = rectify(p, target, mode)
    torch.testing.assert_close(rectified.sum(1), torch.ones(len(p), dtype=p.dtype))
    assert (rectified >= 0).all()
    right = partition(z, target)
    assert 0 < right.sum() < len(right)
    assert torch.equal(rectified[right], p[right])
    assert torch.equal(rectify_logits(z, target, mode)[right], z[right])


@pytest.mark.parametrize("mode", ["swap", "onehot", "revise"])
def test_the_label_ends_on_top(mode):
    z, target = random_case()
    assert torch.equal(rectify(z.softmax(1), target, mode).argmax(1), target)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("space", ["probs", "logits"])
def test_finite_at_the_extremes(mode, dtype, space):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0], [-0.4, -0.6, -9.0]], dtype=dtype)
    for label in range(3):
        target = torch.full((4,), label)
        rectified = rectify_logits(z, target, mode, temperature=1.0, space=space)
        assert rectified.isfinite().all()
        assert rectified.dtype == torch.float32


def test_the_singularity_of_the_scripts_is_finite():
    z = torch.tensor([[-0.4, -0.6, -9.0]], dtype=torch.float64)  # z_y + z_top = -1
    assert rectify_logits(z, torch.tensor([1]), "blend", space="logits").isfinite().all()


def test_untouched_classes_keep_the_teachers_logits():
    z, target = random_case()
    for mode in ("swap", "blend"):
        changed = rectify_logits(z, target, mode) != z
        assert (changed.sum(1) <= 2).all()
    wrong = ~partition(z, target)
    swapped = rectify_logits(z, target, "swap")[wrong]
    torch.testing.assert_close(swapped.gather(1, target[wrong, None])[:, 0], z[wrong].amax(1))


@pytest.mark.parametrize("call", [rectify, rectify_logits])
def test_an_unknown_mode_is_refused(call):
    with pytest.raises(ValueError, match="choose swap, blend, onehot, revise or none"):
        call(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), "drop")


def test_an_unknown_space_is_refused():
    with pytest.raises(ValueError, match="choose probs or logits"):
        rectify_logits(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), "swap", space="odds")
