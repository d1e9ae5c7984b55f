"""Accuracies, their calibration, and means of what a step logs."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lightning_biaskd.networks.outputs import at_least_float32


def topk_accuracies(num_classes: int, prefix: str = "") -> MetricCollection:
    """Top-1 accuracy as ``acc1`` and, from five classes on, top-5 as ``acc5``; both over all samples, in [0, 1]."""
    ks = (1, 5) if num_classes >= 5 else (1,)
    return MetricCollection(
        {f"acc{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False) for k in ks},
        prefix=prefix,
    )


class CalibrationError(MulticlassCalibrationError):
    """Expected calibration error in 15 bins, from logits: how far confidence is from accuracy, in [0, 1].

    torchmetrics' own, but for ``update``, which would wait for the device to see whether it was given probabilities.
    Shape of ``update(logits, target)``: (B, C), (B,). It keeps 8 bytes per sample.

    Args:
        num_classes: C, the number of classes.

    Example:
        >>> metric = CalibrationError(2)
        >>> metric.update(torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1]))  # sure, and half right
        >>> round(metric.compute().item(), 3)
        0.5
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, n_bins=15, validate_args=False)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        confidence, answer = at_least_float32(logits).softmax(1).max(1)
        self.confidences.append(confidence.float())
        self.accuracies.append((answer == target).float())


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
