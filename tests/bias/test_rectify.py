import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny import by_gamma

from lightning_biaskd import KD, Outputs
from lightning_biaskd.bias import partition, rectify, rectify_logits
from lightning_biaskd.command_line.shipped import CONFIGS
from lightning_biaskd.errors import UserError

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


def revised(row, y, eta, lift_right):
    """One distribution, as a list."""
    top = max(range(len(row)), key=row.__getitem__)
    if row[y] < row[top]:
        beta = eta / (row[top] - row[y] + 1)
        return [beta * v + (1 - beta) * (c == y) for c, v in enumerate(row)]
    if not lift_right:
        return row
    label = min(1.0, row[y] + 1 - eta)
    return [label if c == y else v * (1 - label) / (1 - row[y]) for c, v in enumerate(row)]


@pytest.mark.parametrize("lift_right", [False, True])
@pytest.mark.parametrize("eta", [1.0, 0.8, 0.5, 0.05])
def test_revision_by_eta_equals_the_slow_reference(eta, lift_right):
    z, target = random_case(200)
    p = (z / 4).softmax(1)
    rows = [revised(row, y, eta, lift_right) for row, y in zip(p.tolist(), target.tolist(), strict=True)]
    expected = torch.tensor(rows, dtype=torch.float64)
    actual = rectify(p, target, "revise", eta, lift_right)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(actual.sum(1), torch.ones(200, dtype=p.dtype))
    assert (actual >= 0).all()
    label = actual.gather(1, target[:, None])[:, 0]
    assert (label >= actual.amax(1) - 1e-12).all()
    through_logits = (rectify_logits(z, target, "revise", 4.0, "probs", eta, lift_right) / 4).softmax(1)
    torch.testing.assert_close(through_logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("eta", [1.0, 0.8, 1e-3])
def test_lifted_rows_are_finite_distributions_at_the_extremes(eta, dtype):
    z = torch.tensor([[1e4, -1e4, 0.0], [90.0, 0.0, 0.0], [1.0, 0.9, 0.9], [0.0, 0.0, 0.0]], dtype=dtype)
    target = torch.zeros(4, dtype=torch.long)
    lifted = rectify_logits(z, target, "revise", 1.0, eta=eta, lift_right=True)
    assert lifted.isfinite().all()
    assert torch.equal(lifted.argmax(1), target)
    if eta == 1.0:
        torch.testing.assert_close(lifted.softmax(1), z.to(lifted.dtype).softmax(1))
    p = rectify(z.to(lifted.dtype).softmax(1), target, "revise", eta, lift_right=True)
    torch.testing.assert_close(p.sum(1), torch.ones(4, dtype=p.dtype))
    torch.testing.assert_close(lifted.softmax(1), p)


@pytest.mark.parametrize("mode", ["swap", "blend", "onehot", "none"])
@pytest.mark.parametrize("argument", [{"eta": 0.5}, {"lift_right": True}])
@pytest.mark.parametrize("call", [rectify, rectify_logits])
def test_arguments_of_revision_with_another_mode_are_refused(call, argument, mode):
    with pytest.raises(UserError, match=f"belong to mode 'revise' and have no effect on '{mode}'"):
        call(torch.tensor([[0.7, 0.3]]), torch.tensor([1]), mode, **argument)
    with pytest.raises(UserError, match="belong to mode 'revise'"):
        by_gamma(mode, **argument)


@pytest.mark.parametrize("eta", [0.0, -1.0, 1.01, float("nan")])
def test_an_eta_out_of_range_is_refused(eta):
    for call in (rectify, rectify_logits):
        with pytest.raises(UserError, match="eta must be above 0 and at most 1"):
            call(torch.tensor([[0.7, 0.3]]), torch.tensor([1]), "revise", eta=eta)
    with pytest.raises(UserError, match="eta must be"):
        by_gamma("revise", eta=eta)


def test_lifting_raw_logits_is_refused():
    with pytest.raises(UserError, match="set space to probs"):
        rectify_logits(torch.tensor([[0.7, 0.3]]), torch.tensor([1]), "revise", space="logits", lift_right=True)


@pytest.mark.parametrize("lift_right", [False, True])
def test_the_strategy_hands_over_what_is_revised_by_eta(lift_right):
    z, target = random_case(40)
    student, tau = torch.randn_like(z), 2.0
    bias = by_gamma("revise", "batch", "ramp", eta=0.6, lift_right=lift_right).double()
    bias.gamma.fill_(1.0)
    rows = [revised(row, y, 0.6, lift_right) for row, y in zip((z / tau).softmax(1).tolist(), target, strict=True)]
    teacher = tau * torch.tensor(rows, dtype=torch.float64).clamp_min(1e-300).log()
    expected = KD(tau)(Outputs(student), Outputs(teacher), target).mean()
    torch.testing.assert_close(bias(KD(tau), Outputs(student), Outputs(z), target).total, expected)
    assert "eta=0.6" in repr(bias)
    assert ("lift_right=True" in repr(bias)) == lift_right


def test_the_shipped_mft_hands_over_what_its_paper_says():
    """Where wrong: as much of the label as puts it τ above the former first class. Where right: τ more of it."""
    content = yaml.safe_load((CONFIGS / "bias" / "mft.yaml").read_text())
    bias = by_gamma(**content["model"]["init_args"]["bias"]["init_args"])
    assert bias.balance == "equal"
    z, target = random_case(200)
    handed_over = (bias.rectified(KD(2.0), z, target) / 2).softmax(1)
    wrong = 0
    for p, q, y in zip((z / 2).softmax(1).tolist(), handed_over.tolist(), target.tolist(), strict=True):
        others = [c for c in range(len(p)) if c != y]
        assert sum(q) == pytest.approx(1.0)
        kept = [q[c] / p[c] for c in others]  # one factor for all of them
        assert kept == pytest.approx([kept[0]] * len(kept))
        top = max(range(len(p)), key=p.__getitem__)
        if top == y:
            assert q[y] == pytest.approx(min(1.0, p[y] + 0.2))
        else:
            wrong += 1
            assert q[y] - q[top] == pytest.approx(0.2)
    assert 20 < wrong < 180
