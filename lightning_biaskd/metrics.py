"""Metrics of this field, as torchmetrics: exact under DDP."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy


def topk_accuracies(num_classes: int, prefix: str = "") -> MetricCollection:
    """Top-1 accuracy as ``acc1`` and, from five classes on, top-5 as ``acc5``; both over all samples, in [0, 1]."""
    ks = (1, 5) if num_classes >= 5 else (1,)
    return MetricCollection(
        {f"acc{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False) for k in ks},
        prefix=prefix,
    )


class BeyondTeacher(Metric):
    """Counts the samples that student and teacher get right, each alone, both, or neither.

    Shape of ``update(student_logits, teacher_logits, target)``: (B, C), (B, C), (B,). ``compute`` returns a dict of
    counts: ``student_only``, ``teacher_only``, ``both``, ``neither``.

    Example:
        >>> metric = BeyondTeacher()
        >>> metric.update(torch.eye(3), torch.eye(3)[[0, 2, 1]], torch.tensor([0, 1, 0]))
        >>> {name: int(count) for name, count in metric.compute().items()}
        {'student_only': 1, 'teacher_only': 0, 'both': 1, 'neither': 1}
    """

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(4, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        student = student_logits.argmax(1) == target
        teacher = teacher_logits.argmax(1) == target
        groups = (student & ~teacher, teacher & ~student, student & teacher, ~(student | teacher))
        self.counts += torch.stack([group.sum() for group in groups])

    def compute(self) -> dict[str, Tensor]:
        """The four counts."""
        return dict(zip(("student_only", "teacher_only", "both", "neither"), self.counts, strict=True))


class Means(Metric):
    """Means of several scalars at once over the samples seen, gathered on the device in one addition per step.

    Args:
        names: of the scalars.

    Example:
        >>> metric = Means(["loss", "rate"])
        >>> metric.update([torch.tensor(1.0), torch.tensor(0.0)], 3)
        >>> metric.update([torch.tensor(5.0), torch.tensor(1.0)], 1)
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'loss': 2.0, 'rate': 0.25}
    """

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.add_state("sums", torch.zeros(len(names), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, values: list[Tensor], size: int) -> None:
        """Adds a batch of ``size`` samples; ``values`` are its means."""
        self.sums += torch.stack(values).detach().float() * size
        self.count += size

    def compute(self) -> dict[str, Tensor]:
        """The means, by name."""
        return dict(zip(self.names, self.sums / self.count, strict=True))
