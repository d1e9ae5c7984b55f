"""Each metric against an independent, slow reference; and sums over two real processes."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import process_group, spawn
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_biaskd.metrics import (
    Agreement,
    BeyondTeacher,
    BiasRate,
    CalibrationError,
    ClassMeans,
    Contingency,
    DistributionGap,
    Means,
    confused_pairs,
    mcnemar,
    topk_accuracies,
)

CLASSES = 4
MANY = 20_000
GROUPS = ("student_only", "teacher_only", "both", "neither")


def batches(sizes=(7, 5, 1)):
    generator = torch.Generator().manual_seed(3)
    return [
        (
            2 * torch.randn(rows, CLASSES, generator=generator),
            2 * torch.randn(rows, CLASSES, generator=generator),
            torch.randint(CLASSES - 1, (rows,), generator=generator),  # no sample of the last class
        )
        for rows in sizes
    ]


def joined():
    return [torch.cat(parts) for parts in zip(*batches(), strict=True)]


def updated(metric, of, parts):
    for student, teacher, target in parts:
        metric.update(*of(student, teacher, target))
    return metric


METRICS = {
    "beyond": (BeyondTeacher, lambda s, t, y: (s, t, y)),
    "agreement": (Agreement, lambda s, t, y: (s, t)),
    "gap": (lambda: DistributionGap(2.0), lambda s, t, y: (s, t)),
    "bias": (lambda: BiasRate(CLASSES), lambda s, t, y: (t, y)),
    "bias of many classes": (lambda: BiasRate(3000), lambda s, t, y: (F.pad(t, (0, 3000 - CLASSES)), y)),
    "calibration": (lambda: CalibrationError(CLASSES), lambda s, t, y: (t, y)),
}


def value(name, parts=None):
    build, of = METRICS[name]
    return updated(build(), of, batches() if parts is None else parts).compute()


def test_beyond_teacher_over_several_batches_equals_a_slow_count():
    student, teacher, target = joined()
    expected = dict.fromkeys(GROUPS, 0)
    for s, t, y in zip(student.argmax(1).tolist(), teacher.argmax(1).tolist(), target.tolist(), strict=True):
        expected[{(1, 0): "student_only", (0, 1): "teacher_only", (1, 1): "both"}.get((s == y, t == y), "neither")] += 1
    assert {name: int(count) for name, count in value("beyond").items()} == expected


def test_the_contingency_table_tells_shares_and_accuracies():
    student, teacher, target = joined()
    s, t = student.argmax(1) == target, teacher.argmax(1) == target
    table = Contingency.of({f"test/{name}": count.float() for name, count in value("beyond").items()}, "test/")
    assert table.student_accuracy == pytest.approx(s.float().mean().item())
    assert table.teacher_accuracy == pytest.approx(t.float().mean().item())
    assert table.on_teacher_right == pytest.approx(s[t].float().mean().item())
    assert table.on_teacher_wrong == pytest.approx(s[~t].float().mean().item())
    assert table.shares["both"] == pytest.approx((s & t).float().mean().item())
    assert sum(table.shares.values()) == pytest.approx(1)
    assert math.isnan(Contingency(0, 1, 2, 0).on_teacher_wrong)
    assert math.isnan(Contingency(1, 0, 0, 2).on_teacher_right)


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (1, 0), (3, 3), (2, 9), (9, 2), (40, 61), (612, 550)])
def test_mcnemar_is_the_exact_binomial_test(ours, theirs):
    n = ours + theirs
    ways = [Fraction(math.comb(n, k), 2**n) for k in range(n + 1)]
    as_rare = sum(p for p in ways if p <= ways[ours])  # the two-sided test as a sum over all outcomes no likelier
    assert mcnemar(ours, theirs) == pytest.approx(float(as_rare), rel=1e-9)
    assert Contingency(ours, theirs, 5, 5).p_value == mcnemar(ours, theirs)


def test_agreement_is_a_share_of_samples():
    student, teacher, _ = joined()
    same = [s == t for s, t in zip(student.argmax(1).tolist(), teacher.argmax(1).tolist(), strict=True)]
    assert value("agreement").item() == pytest.approx(sum(same) / len(same))


def test_the_gap_is_that_of_scipy():
    student, teacher, _ = (tensor.double().numpy() for tensor in joined())
    p, q = (np.exp(z / 2) / np.exp(z / 2).sum(1, keepdims=True) for z in (teacher, student))
    gap = value("gap")
    assert gap["kl"].item() == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-5)
    assert gap["js"].item() == pytest.approx((jensenshannon(p, q, axis=1) ** 2).mean(), rel=1e-5)


def test_the_gap_is_finite_at_extreme_logits_and_zero_between_equals():
    far = updated(DistributionGap(), METRICS["gap"][1], [(1e4 * torch.eye(3), -1e4 * torch.eye(3), None)]).compute()
    assert far["kl"] > 1e3
    assert far["js"].item() == pytest.approx(math.log(2))
    logits = torch.randn(5, 3)
    same = updated(DistributionGap(), METRICS["gap"][1], [(logits, logits, None)]).compute()
    assert same["js"].item() == pytest.approx(0, abs=1e-6)


def test_the_bias_rate_equals_a_slow_count():
    _, teacher, target = joined()
    confusion = [[0] * CLASSES for _ in range(CLASSES)]
    for answer, label in zip(teacher.argmax(1).tolist(), target.tolist(), strict=True):
        confusion[label][answer] += 1
    values = value("bias")
    assert values["confusion"].tolist() == confusion
    wrong = sum(confusion[y][a] for y in range(CLASSES) for a in range(CLASSES) if y != a)
    assert values["wrong_rate"].item() == pytest.approx(wrong / 13)
    for label, row in enumerate(confusion[:-1]):
        assert values["per_class"][label].item() == pytest.approx(1 - row[label] / sum(row))
    assert values["per_class"][-1].isnan()


def many_classes(rows=4000, seed=0):
    """Labels and answers of a teacher with few common mistakes and many rare ones, over 20,000 classes."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(MANY, (rows,), generator=generator)
    answer = torch.where(torch.rand(rows, generator=generator) < 0.7, target, (7 * target + 3) % MANY)
    target[: rows // 8], answer[: rows // 8] = 12_345, 19_999
    target[-rows // 16 :], answer[-rows // 16 :] = 3, 4
    return target, answer


def wide_bias_rate(size=100, **kwargs):
    metric, (target, answer) = BiasRate(MANY), many_classes(**kwargs)
    for y, a in zip(target.split(size), answer.split(size), strict=True):
        metric.update(torch.zeros(len(y), MANY).scatter_(1, a[:, None], 1.0), y)
    return metric, target, answer


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


def test_many_classes_need_little_memory_and_are_counted_exactly():
    logits = 100 * MANY * 4  # of one batch, which the test itself makes
    with Largest() as largest:
        metric, target, answer = wide_bias_rate()
        values = metric.compute()
        pairs = confused_pairs(values["confusion"], 12)
    assert largest.bytes <= logits
    assert sum(x.nbytes for x in [metric.seen, metric.right, *metric.pairs, *metric.counts]) < 1e6
    assert values["confusion"].shape == (MANY, MANY)
    assert values["wrong_rate"].item() == pytest.approx((target != answer).float().mean().item())
    counted = Counter(zip(target.tolist(), answer.tolist(), strict=True))
    assert pairs[:2] == [
        (12_345, 19_999, 500, 500 / (target == 12_345).sum().item()),
        (3, 4, 250, 250 / (target == 3).sum().item()),
    ]
    for pair in pairs:
        assert counted[pair.label, pair.answer] == pair.samples
    seen = torch.bincount(target, minlength=MANY)
    assert torch.equal(values["seen"], seen)
    right = torch.bincount(target[target == answer], minlength=MANY)
    torch.testing.assert_close(values["per_class"], 1 - right / seen, equal_nan=True)


def test_pairs_of_many_classes_are_merged_and_the_rarest_forgotten(monkeypatch):
    monkeypatch.setattr("lightning_biaskd.metrics.bias_rate.MOST_PAIRS", 500)
    metric, target, answer = wide_bias_rate()
    assert sum(map(len, metric.pairs)) <= 500 + 600
    values = metric.compute()
    assert sum(map(len, metric.pairs)) <= 500
    assert values["wrong_rate"].item() == pytest.approx((target != answer).float().mean().item())
    assert confused_pairs(values["confusion"], 1)[0][:3] == (12_345, 19_999, 500)


def test_dense_and_sparse_counts_agree(monkeypatch):
    dense = value("bias")
    monkeypatch.setattr("lightning_biaskd.metrics.bias_rate.DENSE_CLASSES", 2)
    sparse = value("bias")
    assert sparse["confusion"].is_sparse
    sparse["confusion"] = sparse["confusion"].to_dense()
    torch.testing.assert_close(sparse, dense, equal_nan=True)
    assert confused_pairs(sparse["confusion"]) == confused_pairs(dense["confusion"])
    never = BiasRate(CLASSES)
    never.update(10 * torch.eye(CLASSES), torch.arange(CLASSES))
    assert confused_pairs(never.compute()["confusion"]) == []


def test_a_tie_is_right():
    values = updated(BiasRate(3), lambda t, y, _: (t, y), [(torch.ones(3, 3), torch.arange(3), None)]).compute()
    assert values["confusion"].tolist() == torch.eye(3).long().tolist()


def test_confused_pairs_come_by_frequency_without_right_answers():
    confusion = torch.tensor([[90, 4, 6], [0, 50, 0], [3, 4, 13]])
    assert confused_pairs(confusion, 3) == [(0, 2, 6, 0.06), (0, 1, 4, 0.04), (2, 1, 4, 0.2)]
    assert len(confused_pairs(confusion)) == 4


def test_calibration_is_torchmetrics_own():
    _, teacher, target = joined()
    expected = multiclass_calibration_error(teacher.softmax(1), target, CLASSES, n_bins=15)
    torch.testing.assert_close(value("calibration"), expected)
    small = teacher.sigmoid()  # logits that lie in [0, 1] stay logits
    metric = CalibrationError(CLASSES)
    metric.update(small, target)
    torch.testing.assert_close(metric.compute(), multiclass_calibration_error(small.softmax(1), target, CLASSES, 15))


@pytest.mark.parametrize("name", METRICS)
def test_metrics_start_anew_after_a_reset_and_take_half_precision(name):
    build, of = METRICS[name]
    metric = updated(build(), of, batches())
    metric.reset()
    first = batches()[:1]
    torch.testing.assert_close(updated(metric, of, first).compute(), value(name, first), equal_nan=True)
    half = [(s.bfloat16().float(), t.bfloat16().float(), y) for s, t, y in batches()]
    cast = [(s.bfloat16(), t.bfloat16(), y) for s, t, y in half]
    torch.testing.assert_close(value(name, cast), value(name, half), rtol=1e-3, atol=1e-3, equal_nan=True)


def run_rank(rank, folder):
    with process_group(rank, 2, folder):
        part = batches()[:1] if rank == 0 else batches()[1:]  # 7 samples here, 6 in two batches there
        torch.save({name: value(name, part) for name in METRICS}, f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_two_processes_count_as_one(tmp_path):
    spawn(run_rank, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        for name, found in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(found, value(name), equal_nan=True)


def test_means_weigh_by_size():
    metric = Means(["a", "b"])
    metric.update([torch.tensor(1.0), torch.tensor(10.0)], 1)
    metric.update([torch.tensor(4.0), torch.tensor(40.0)], 2)
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx({"a": 3.0, "b": 30.0})


@pytest.mark.parametrize(("classes", "names"), [(4, {"acc1"}), (5, {"acc1", "acc5"}), (100, {"acc1", "acc5"})])
def test_top5_needs_five_classes(classes, names):
    metrics = topk_accuracies(classes)
    logits, target = torch.randn(200, classes), torch.randint(classes, (200,))
    metrics.update(logits, target)
    values = metrics.compute()
    assert set(values) == names
    for name, value in values.items():
        top = logits.topk(int(name[3:]), dim=1).indices
        assert value.item() == pytest.approx((top == target[:, None]).any(1).float().mean().item())


def test_class_means_count_beyond_what_float32_can():
    metric = ClassMeans(2)
    many, target = torch.ones(2**24), torch.zeros(2**24, dtype=torch.long)
    for value in (many, torch.zeros_like(many)):
        metric.update(value, target)
    assert metric.compute()[0] == 0.5
