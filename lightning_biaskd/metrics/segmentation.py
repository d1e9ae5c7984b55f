"""How well maps of classes are predicted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

BAND = 3
"""Pixels on either side of a boundary that count as near it."""


class SegmentationScores(Metric):
    r"""Pixel accuracy and intersection over union, over all pixels of a data set.

    With the counts of all pixels that have a label, :math:`\mathrm{IoU}_c = TP_c / (TP_c + FP_c + FN_c)`.

    ================= ========================================================================================
    key               meaning
    ================= ========================================================================================
    ``acc1``          share of pixels whose class is right
    ``miou``          mean IoU of the classes that occur in labels or predictions, in [0, 1]
    ``boundary_miou`` the same over the pixels at most 3 pixels from another class (the trimap of Kohli, Ladický
                      and Torr, 2009)
    ``iou/CLASS``     IoU of each class, NaN if it does not occur
    ================= ========================================================================================

    Shape of ``update(logits, target)``: (B, C, H, W), (B, H, W).

    Args:
        num_classes: C.
        ignore_index: the label of pixels that count nowhere; ``None`` if there is none.
        class_names: of the C classes; ``None`` for their numbers.
        prefix: in front of each key.

    Example:
        >>> target = torch.tensor([[[0, 0, 1, 255]]])
        >>> logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 2).movedim(-1, 1)
        >>> scores = SegmentationScores(2, ignore_index=255)
        >>> scores.update(logits, target)
        >>> {key: round(value.item(), 3) for key, value in scores.compute().items()}
        {'acc1': 0.667, 'miou': 0.5, 'boundary_miou': 0.5, 'iou/0': 0.5, 'iou/1': 0.5}
    """

    full_state_update = False
    counts: Tensor
    near: Tensor

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = None,
        class_names: Sequence[str] | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = class_names or [str(number) for number in range(num_classes)]
        self.prefix = prefix
        for name in ("counts", "near"):
            self.add_state(name, torch.zeros(num_classes**2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        known = torch.ones_like(target, dtype=torch.bool) if self.ignore_index is None else target != self.ignore_index
        cells = torch.where(known, target, 0) * self.num_classes + logits.argmax(1)
        near = known & near_boundary(target, known, self.num_classes)
        self.counts.index_add_(0, cells.flatten(), known.flatten().long())
        self.near.index_add_(0, cells.flatten(), near.flatten().long())

    def compute(self) -> dict[str, Tensor]:
        """The scores."""
        table = self.counts.view(self.num_classes, -1)
        iou = _iou(table)
        scores = {"acc1": table.trace() / table.sum(), "miou": iou.nanmean()}
        scores["boundary_miou"] = _iou(self.near.view(self.num_classes, -1)).nanmean()
        scores |= {f"iou/{name}": value for name, value in zip(self.class_names, iou, strict=True)}
        return {self.prefix + key: value for key, value in scores.items()}


def near_boundary(target: Tensor, known: Tensor, num_classes: int) -> Tensor:
    """Which pixels have another class at most 3 pixels away, up, down, sideways or diagonally.

    Args:
        target: (B, H, W) labels.
        known: (B, H, W) bool, where there is a label. Pixels without one are no class.
        num_classes: C.

    Returns:
        (B, H, W) bool.
    """
    size = 2 * BAND + 1
    highest = torch.where(known, target, -1).float().unsqueeze(1)
    lowest = torch.where(known, target, num_classes).float().unsqueeze(1)
    highest, lowest = F.max_pool2d(highest, size, 1, BAND), -F.max_pool2d(-lowest, size, 1, BAND)
    return (highest > lowest).squeeze(1)


def _iou(table: Tensor) -> Tensor:
    """IoU of each class of a table (C, C) of labels and predictions; NaN if the class does not occur."""
    return table.diagonal() / (table.sum(0) + table.sum(1) - table.diagonal())
