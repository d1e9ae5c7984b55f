"""Which samples student and teacher get right: alone, both, or neither."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from scipy.stats import binom
from torch import Tensor
from torchmetrics import Metric


def mcnemar(student_only: int, teacher_only: int) -> float:
    r"""McNemar's test: how likely is so uneven a split if student and teacher were equally good?

    Only the samples that one network alone gets right tell them apart. Were both equally good, each of these n would be
    the student's with probability ½:

    .. math:: p = \min\Big(1,\ 2 \sum_{k=0}^{\min(n_S, n_T)} \binom{n}{k} 2^{-n}\Big)

    This is the exact two-sided test (McNemar, 1947, in its binomial form), at any n: there is no approximation for
    large n to choose.

    Args:
        student_only: :math:`n_S`, samples that only the student gets right.
        teacher_only: :math:`n_T`, images that only the teacher gets right.

    Returns:
        The p-value; 1 where no sample tells them apart.

    Example:
        >>> mcnemar(0, 5), mcnemar(6, 6), round(mcnemar(204, 277), 5)
        (0.0625, 1.0, 0.00101)
    """
    n = student_only + teacher_only
    return min(1.0, 2 * float(binom.cdf(min(student_only, teacher_only), n, 0.5))) if n else 1.0


class Contingency(NamedTuple):
    """How the right answers of student and teacher overlap, in numbers of samples; what :class:`BeyondTeacher` counts.

    Example:
        >>> table = Contingency(student_only=30, teacher_only=20, both=940, neither=10)
        >>> table.student_accuracy, table.on_teacher_wrong, round(table.on_teacher_right, 4), round(table.p_value, 2)
        (0.97, 0.75, 0.9792, 0.2)
    """

    student_only: int
    teacher_only: int
    both: int
    neither: int

    @classmethod
    def of(cls, values: Mapping[str, Tensor | float], prefix: str = "") -> Contingency:
        """The counts out of logged metrics: ``Contingency.of(trainer.callback_metrics, "test/")``."""
        return cls(*(int(values[prefix + name]) for name in cls._fields))

    @property
    def shares(self) -> dict[str, float]:
        """The four counts as shares of all samples."""
        return {name: _ratio(count, sum(self)) for name, count in self._asdict().items()}

    @property
    def student_accuracy(self) -> float:
        """Of all samples, in [0, 1]."""
        return _ratio(self.student_only + self.both, sum(self))

    @property
    def teacher_accuracy(self) -> float:
        """Of all samples, in [0, 1]."""
        return _ratio(self.teacher_only + self.both, sum(self))

    @property
    def on_teacher_right(self) -> float:
        """The student's accuracy where the teacher is right; NaN where it never is."""
        return _ratio(self.both, self.both + self.teacher_only)

    @property
    def on_teacher_wrong(self) -> float:
        """The student's accuracy where the teacher is wrong; NaN where it never is."""
        return _ratio(self.student_only, self.student_only + self.neither)

    @property
    def p_value(self) -> float:
        """Of :func:`mcnemar`."""
        return mcnemar(self.student_only, self.teacher_only)


def _ratio(count: int, size: int) -> float:
    return count / size if size else math.nan


class BeyondTeacher(Metric):
    """Counts the samples that student and teacher get right, each alone, both, or neither.

    Shape of ``update(student_logits, teacher_logits, target)``: (B, C, …), (B, C, …), (B, …). ``compute`` returns a
    dict of counts: ``student_only``, ``teacher_only``, ``both``, ``neither``; :class:`Contingency` makes shares,
    accuracies and a test of them.

    Args:
        ignore_index: the label of samples that count nowhere; ``None`` if there is none.

    Example:
        >>> metric = BeyondTeacher()
        >>> metric.update(torch.eye(3), torch.eye(3)[[0, 2, 1]], torch.tensor([0, 1, 0]))
        >>> {name: int(count) for name, count in metric.compute().items()}
        {'student_only': 1, 'teacher_only': 0, 'both': 1, 'neither': 1}
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, ignore_index: int | None = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.add_state("counts", torch.zeros(4, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        student = student_logits.argmax(1) == target
        teacher = teacher_logits.argmax(1) == target
        groups = torch.stack([student & ~teacher, teacher & ~student, student & teacher, ~(student | teacher)])
        if self.ignore_index is not None:
            groups = groups & (target != self.ignore_index)
        self.counts += groups.flatten(1).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """The four counts."""
        return dict(zip(Contingency._fields, self.counts, strict=True))
