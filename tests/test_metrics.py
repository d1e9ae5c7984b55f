import pytest
import torch

from lightning_biaskd.metrics import BeyondTeacher, Means, topk_accuracies


def test_beyond_teacher_over_several_batches_equals_a_slow_count():
    metric = BeyondTeacher()
    expected = dict.fromkeys(("student_only", "teacher_only", "both", "neither"), 0)
    for rows in (7, 5, 1):
        student, teacher, target = torch.randn(rows, 3), torch.randn(rows, 3), torch.randint(3, (rows,))
        metric.update(student, teacher, target)
        for s, t, y in zip(student.argmax(1).tolist(), teacher.argmax(1).tolist(), target.tolist(), strict=True):
            expected[
                {(1, 0): "student_only", (0, 1): "teacher_only", (1, 1): "both"}.get((s == y, t == y), "neither")
            ] += 1
    assert {name: int(count) for name, count in metric.compute().items()} == expected


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
