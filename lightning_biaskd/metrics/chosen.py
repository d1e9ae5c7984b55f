"""Metrics of the user's choice, for student and teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import at_least_float32


class ChosenMetrics(MetricCollection):
    """Metrics of the user's choice on one network's predictions.

    ``update(logits, target)`` takes logits (B, C) and labels (B,), and gives each metric the probabilities, the softmax
    of the logits, and the labels: what the classification metrics of torchmetrics take. ``compute`` returns scalars by
    key, ``{prefix}{name}``; a metric of several values, such as one with ``average=None``, gets a key for each,
    ``{prefix}{name}_0`` and so on.

    Args:
        metrics: a sequence, where each is named by its class, a mapping by name, a collection, or a single one. They
            are copied.
        prefix: of the keys, such as ``"val/"`` for the student and ``"val/teacher_"`` for the teacher.

    Raises:
        UserError: two have the same name, or a name is one of ours; on ``compute``, a metric gives a matrix.

    Example:
        >>> import torch
        >>> from torchmetrics.classification import MulticlassF1Score
        >>> chosen = ChosenMetrics([MulticlassF1Score(num_classes=2)], "val/")
        >>> chosen.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> {key: value.item() for key, value in chosen.compute().items()}
        {'val/MulticlassF1Score': 1.0}
    """

    def __init__(self, metrics: Sequence[Metric] | Mapping[str, Metric], prefix: str = "") -> None:
        if isinstance(metrics, MetricCollection):
            metrics = dict(metrics.items(keep_base=True))
        elif isinstance(metrics, Metric):
            metrics = [metrics]
        names = list(metrics) if isinstance(metrics, Mapping) else [type(metric).__name__ for metric in metrics]
        found = list(metrics.values()) if isinstance(metrics, Mapping) else list(metrics)
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"metrics has two {repeated}: give a mapping from names of your choice to metrics")
        if taken := next((name for name in names if name in _OURS), None):
            raise UserError(f"metrics: {taken!r} is logged already: choose another name")
        copies: dict[str, Metric | MetricCollection] = dict(zip(names, copy.deepcopy(found), strict=True))
        super().__init__(copies, prefix=prefix, compute_groups=False)

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]  # also a name of ModuleDict's
        """Adds a batch."""
        try:
            super().update(at_least_float32(logits).softmax(1), target)
        except (ValueError, RuntimeError, TypeError) as error:
            shapes = f"probabilities {tuple(logits.shape)} and labels {tuple(target.shape)}"
            raise UserError(
                f"metrics: one of {', '.join(map(str, self.keys(keep_base=True)))} refuses {shapes}: {error}"
            ) from error

    def compute(self) -> dict[str, Tensor]:
        """Scalars by key."""
        values: dict[str, Tensor] = {}
        for key, value in super().compute().items():
            if value.ndim > 1:
                name = key.removeprefix(self.prefix or "")
                raise UserError(f"metrics: {name} gives a tensor {tuple(value.shape)}, and only numbers can be logged")
            values |= {f"{key}_{place}": x for place, x in enumerate(value)} if value.ndim else {key: value}
        return values


_OURS = {
    *("acc1", "acc5", "teacher_acc1", "teacher_acc5", "gap", "loss"),
    *("student_only", "teacher_only", "both", "neither"),
}
