"""The mean of a value, class by class."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class ClassMeans(Metric):
    """Mean of a value of each sample, for each class.

    Shape of ``update(value, target)``: (B,), (B,). ``compute`` returns (C,), NaN for a class not seen.

    Args:
        num_classes: C, the number of classes.

    Example:
        >>> metric = ClassMeans(3)
        >>> metric.update(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0, 0, 2]))
        >>> metric.compute()
        tensor([0.5000,    nan, 0.5000])
    """

    full_state_update = False
    total: Tensor
    seen: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(num_classes), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, value: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        value = value.detach().to(self.total)
        self.total += torch.zeros_like(self.total).index_add_(
            0, target, value
        )  # added one by one, values are lost in a large sum
        self.seen.index_add_(0, target, torch.ones_like(target))

    def compute(self) -> Tensor:
        """The means."""
        return self.total / self.seen
