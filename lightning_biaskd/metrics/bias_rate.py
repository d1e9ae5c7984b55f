"""How often the teacher is wrong, and on what."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_biaskd.bias.partition import partition


class ConfusedPair(NamedTuple):
    """A mistake that the teacher makes.

    Attributes:
        label: the class that the samples have.
        answer: the class that the teacher ranks first.
        samples: how many it is made on.
        share: of the samples with that label.
    """

    label: int
    answer: int
    samples: int
    share: float


def confused_pairs(confusion: Tensor, k: int = 10) -> list[ConfusedPair]:
    """The k most frequent mistakes, most frequent first.

    Args:
        confusion: (C, C) counts, rows by label, columns by answer.
        k: how many at most; pairs that never occur are left out.

    Example:
        >>> confused_pairs(torch.tensor([[7, 3], [0, 9]]))
        [ConfusedPair(label=0, answer=1, samples=3, share=0.3)]
    """
    wrong = confusion.clone().fill_diagonal_(0)
    counts, places = wrong.flatten().sort(descending=True, stable=True)
    pairs = zip(counts[:k].tolist(), places[:k].tolist(), strict=True)
    found = [(*divmod(place, len(confusion)), count) for count, place in pairs if count]
    return [ConfusedPair(y, answer, count, count / int(confusion[y].sum())) for y, answer, count in found]


class BiasRate(Metric):
    """How often the teacher is wrong, over all samples, per class, and on which pairs of classes.

    Wrong is as in :func:`~lightning_biaskd.bias.partition`: a tie for the first place is right. Shape of
    ``update(teacher_logits, target)``: (B, C), (B,). ``compute`` returns a dict: ``wrong_rate``, a scalar;
    ``per_class``, (C,), NaN for a class not seen; and ``confusion``, (C, C) counts, rows by label, columns by the
    teacher's answer, which :func:`confused_pairs` reads. It keeps 8 C² bytes: 8 MB for a thousand classes.

    Args:
        num_classes: C, the number of classes.

    Example:
        >>> metric = BiasRate(2)
        >>> metric.update(torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.0, 3.0]]), torch.tensor([1, 1, 1]))
        >>> values = metric.compute()
        >>> round(values["wrong_rate"].item(), 4), values["confusion"].tolist()
        (0.3333, [[0, 0], [1, 2]])
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, teacher_logits: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        answer = torch.where(partition(teacher_logits, target), target, teacher_logits.argmax(1))
        # not bincount, which waits for the device
        self.confusion.view(-1).index_add_(0, target * len(self.confusion) + answer, torch.ones_like(target))

    def compute(self) -> dict[str, Tensor]:
        """The rates and the counts."""
        seen, right = self.confusion.sum(1), self.confusion.diagonal()
        return {
            "wrong_rate": 1 - right.sum() / seen.sum(),
            "per_class": 1 - right / seen,
            "confusion": self.confusion,
        }


class NotOnTop(Metric):
    """Share of the teacher's wrong answers whose label a rectification does not put on top.

    Shape of ``update(teacher_logits, rectified_logits, target)``: (B, C), (B, C), (B,). ``compute`` is NaN where no
    answer was wrong.

    Example:
        >>> metric = NotOnTop()
        >>> teacher, rectified = torch.tensor([[3.0, 2.0, 1.0]] * 2), torch.tensor([[2.0, 3.0, 1.0], [3.0, 2.0, 1.0]])
        >>> metric.update(teacher, rectified, torch.tensor([1, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    missed: Tensor
    wrong: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("missed", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("wrong", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, teacher_logits: Tensor, rectified_logits: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        wrong = ~partition(teacher_logits, target)
        self.wrong += wrong.sum()
        self.missed += (wrong & ~partition(rectified_logits, target)).sum()

    def compute(self) -> Tensor:
        """The share, in [0, 1]."""
        return self.missed / self.wrong
