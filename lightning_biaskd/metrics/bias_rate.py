"""How often the teacher is wrong, and on what."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_biaskd.bias.partition import partition

DENSE_CLASSES = 2048
"""Up to so many classes the counts of all pairs are one matrix."""
MOST_PAIRS = 1 << 20
"""Of more classes, so many pairs are kept, and so many samples wait to be counted."""


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
        confusion: (C, C) counts, rows by label, columns by answer; dense or sparse.
        k: how many at most; pairs that never occur are left out.

    Example:
        >>> confused_pairs(torch.tensor([[7, 3], [0, 9]]))
        [ConfusedPair(label=0, answer=1, samples=3, share=0.3)]
    """
    found = confusion.to_sparse().coalesce()
    (labels, answers), counts = found.indices(), found.values()
    seen = torch.zeros(len(confusion), dtype=counts.dtype, device=counts.device).index_add_(0, labels, counts)
    wrong = labels != answers
    labels, answers, counts = labels[wrong], answers[wrong], counts[wrong]
    first = counts.sort(descending=True, stable=True).indices[:k]
    rows = torch.stack([x[first] for x in (labels, answers, counts, seen[labels])], 1).tolist()
    return [ConfusedPair(label, answer, count, count / of) for label, answer, count, of in rows if count]


class BiasRate(Metric):
    """How often the teacher is wrong, over all samples, per class, and on which pairs of classes.

    Wrong is as in :func:`~lightning_biaskd.bias.partition`: a tie for the first place is right. Shape of
    ``update(teacher_logits, target)``: (B, C), (B,). ``compute`` returns a dict: ``wrong_rate``, a scalar;
    ``per_class``, (C,), NaN for a class not seen; ``seen`` and ``right``, (C,), how many samples of each class there
    were and how many the teacher got right; and ``confusion``, (C, C) counts, rows by label, columns by the teacher's
    answer, which :func:`confused_pairs` reads.

    Up to 2,048 classes the counts are dense, in 8 C² bytes: 8 MB for a thousand classes. Of more classes ``confusion``
    is a sparse tensor, and the memory doesn't grow with C²: 16 bytes for each class, and some 50 MB at most for the
    pairs. Then the device is waited for once in a million samples, and if more than a million pairs occur, the rarest
    are forgotten; the rates stay exact.

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
    seen: Tensor
    right: Tensor
    pairs: list[Tensor]
    counts: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dense = num_classes <= DENSE_CLASSES
        self._waiting = 0
        if self.dense:
            self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")
            return
        self.add_state("seen", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("right", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("pairs", [], dist_reduce_fx="cat")  # label * C + answer; -1 for a right answer
        self.add_state("counts", [], dist_reduce_fx="cat")

    def update(self, teacher_logits: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        right, answer = partition(teacher_logits, target), teacher_logits.argmax(1)
        one = torch.ones_like(target)
        if self.dense:
            place = target * self.num_classes + torch.where(right, target, answer)
            self.confusion.view(-1).index_add_(0, place, one)  # not bincount, which waits for the device
            return
        self.seen.index_add_(0, target, one)
        self.right.index_add_(0, target, right.long())
        self.pairs.append(torch.where(right, -1, target * self.num_classes + answer))
        self.counts.append(one)
        self._waiting += len(target)
        if self._waiting > MOST_PAIRS:
            self._merge()

    def _merge(self) -> None:
        """Counts each pair once, and keeps the most frequent."""
        self._waiting = 0
        if not len(self.pairs):
            return
        pairs, counts = (torch.cat(x) if isinstance(x, list) else x for x in (self.pairs, self.counts))
        unique, place = torch.unique(pairs, return_inverse=True)
        totals = torch.zeros_like(unique).index_add_(0, place, counts)
        unique, totals = unique[unique >= 0], totals[unique >= 0]
        if len(unique) > MOST_PAIRS:
            kept = totals.topk(MOST_PAIRS).indices.sort().values
            unique, totals = unique[kept], totals[kept]
        self.pairs, self.counts = [unique], [totals]

    def reset(self) -> None:
        super().reset()
        self._waiting = 0

    def compute(self) -> dict[str, Tensor]:
        """The rates and the counts."""
        if self.dense:
            seen, right, confusion = self.confusion.sum(1), self.confusion.diagonal(), self.confusion
        else:
            self._merge()
            seen, right, confusion = self.seen, self.right, self._sparse()
        return {
            "wrong_rate": 1 - right.sum() / seen.sum(),
            "per_class": 1 - right / seen,
            "seen": seen,
            "right": right,
            "confusion": confusion,
        }

    def _sparse(self) -> Tensor:
        """(C, C) counts, with the right answers on the diagonal."""
        classes = self.right.nonzero().squeeze(1)
        none = self.right[:0]
        pairs, counts = torch.cat([none, *self.pairs]), torch.cat([none, *self.counts])
        places = torch.cat([classes * (self.num_classes + 1), pairs])
        return torch.sparse_coo_tensor(
            torch.stack([places // self.num_classes, places % self.num_classes]),
            torch.cat([self.right[classes], counts]),
            (self.num_classes, self.num_classes),
            check_invariants=False,
        ).coalesce()


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
