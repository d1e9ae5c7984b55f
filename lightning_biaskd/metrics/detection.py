"""How well boxes are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from lightning_biaskd.errors import UserError

_SHOWN = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")


class DetectionScores(MeanAveragePrecision):
    """Average precision of boxes over a data set, as COCO's evaluation defines it, by torchmetrics and pycocotools.

    ================= ========================================================================================
    key               meaning
    ================= ========================================================================================
    ``map``           average precision, mean over the classes and over thresholds of IoU from 0.5 to 0.95
    ``map_50``        the same at the threshold 0.5, as Pascal VOC counts; ``map_75`` at 0.75
    ``map_small``     of objects below 32² pixels; ``map_medium`` below 96², ``map_large`` above
    ``mar_100``       average recall with 100 boxes per image
    ``map/CLASS``     average precision of each class
    ================= ========================================================================================

    Values are in [0, 1], and NaN where no object counts. Objects with ``iscrowd`` 1 count neither as missed nor as
    found. Counts of several processes are joined.

    Args:
        class_names: of the labels from 0; ``None`` for their numbers.
        prefix: of the keys.

    Raises:
        UserError: pycocotools is not installed.

    Example:
        >>> box, label = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([1])
        >>> scores = DetectionScores(["background", "cat"], "val/")
        >>> found = {"boxes": box * 0.9, "labels": label, "scores": torch.ones(1)}
        >>> scores.update([found], [{"boxes": box, "labels": label}])
        >>> {key: round(value.item(), 2) for key, value in scores.compute().items() if "cat" in key or "50" in key}
        {'val/map_50': 1.0, 'val/map/cat': 0.7}
    """

    def __init__(self, class_names: Sequence[str] | None = None, prefix: str = "") -> None:
        try:
            super().__init__(class_metrics=True)
        except ModuleNotFoundError as error:
            raise UserError("average precision needs pycocotools: pip install 'lightning-biaskd[detection]'") from error
        self.warn_on_many_detections = False
        self.class_names = class_names
        self.prefix = prefix

    def compute(self) -> dict[str, Tensor]:
        """Scalars by key."""
        found: dict[str, Any] = super().compute()
        values = {name: found[name] for name in _SHOWN}
        for label, value in zip(found["classes"].view(-1).tolist(), found["map_per_class"].view(-1), strict=True):
            name = self.class_names[label] if self.class_names and label < len(self.class_names) else label
            values[f"map/{name}"] = value
        return {f"{self.prefix}{name}": torch.where(value < 0, torch.nan, value) for name, value in values.items()}
