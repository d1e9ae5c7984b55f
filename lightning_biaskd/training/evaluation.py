"""What a module counts while it is trained, validated and tested, and logs at the end of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_biaskd.distributed.padding import unpadded_rows
from lightning_biaskd.metrics import ChosenMetrics, SegmentationScores, topk_accuracies
from lightning_biaskd.metrics.class_names import class_names_of
from lightning_biaskd.metrics.meters import Meters
from lightning_biaskd.training.batches import check_one_loader


class EvaluatedModule(LightningModule):
    """A module that counts every image of validation and test once, on however many processes.

    Attributes:
        meters: all that is counted, each name with its stage in front.
        metrics: further torchmetrics of validation and test.
        ignore_index: the label of pixels or images that count nowhere.
    """

    ignore_index: int | None
    meters: Meters
    metrics: Sequence[Metric] | Mapping[str, Metric] | None

    def evaluate(self, stage: str, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor] | None:
        """Counts one batch of an evaluation; the result is logged at the end of the epoch.

        Args:
            stage: ``"val"`` or ``"test"``.
            batch: ``(image, target, …)``.
            batch_idx: index of the batch.

        Returns:
            What callbacks find in the ``outputs`` of ``on_validation_batch_end``, if anything.
        """
        raise NotImplementedError

    def checked_batch(self, batch: Any, batch_idx: int) -> Sequence[Any]:
        """A batch ``(image, target, …)`` of what the loader gave, which must be of the right kind.

        Raises:
            UserError: it is of another kind.
        """
        raise NotImplementedError

    def own_rows(self, stage: str, batch: Sequence[Any], batch_idx: int) -> int:
        """Number of leading rows of an evaluation's batch that count; under DDP the last batch may be padded."""
        loaders: Any = getattr(self.trainer, f"{stage}_dataloaders")
        return unpadded_rows(loaders, batch_idx, len(batch[1]))

    def count_accuracy(self, prefix: str, logits: Tensor, target: Tensor) -> None:
        """Adds a batch to the scores logged under ``{prefix}acc1`` and so on.

        These are :func:`~lightning_biaskd.metrics.topk_accuracies` of images, and
        :class:`~lightning_biaskd.metrics.SegmentationScores` of maps.

        Args:
            prefix: ``"val/"``, ``"test/teacher_"`` and so on.
            logits: (B, C) or (B, C, H, W).
            target: (B,) or (B, H, W) labels.
        """
        classes = logits.shape[1]

        def scores() -> MetricCollection | SegmentationScores:
            names = class_names_of(getattr(self._trainer, "datamodule", None), classes)
            if logits.ndim == 2:
                return topk_accuracies(classes, prefix)
            return SegmentationScores(classes, self.ignore_index, names, prefix)

        if logits.ndim == 2 and self.ignore_index is not None:
            known = target != self.ignore_index
            logits, target = logits[known], target[known]
            if not len(target):
                return
        self.meters.update(prefix, scores, logits, target)
        if self.metrics:
            self.meters.update(f"{prefix}chosen", lambda: ChosenMetrics(self.metrics or [], prefix), logits, target)

    def log_meters(self, stage: str) -> dict[str, Tensor]:
        """Logs and empties the meters whose name begins with the stage; all processes must call it.

        Returns:
            What was logged, the same on every process.
        """
        computed = self.meters.compute(f"{stage}/")
        self.meters.reset(f"{stage}/")
        values = {key: value.float() for part in computed.values() for key, value in part.items()}
        for key, value in values.items():
            self.log(key, value, prog_bar=key.startswith("val/") and key.endswith(("acc1", "map")), sync_dist=True)
        return values

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor] | None:
        return self.evaluate("val", self.checked_batch(batch, batch_idx), batch_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor] | None:
        return self.evaluate("test", self.checked_batch(batch, batch_idx), batch_idx)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.meters.reset("train/")

    def on_validation_start(self) -> None:
        check_one_loader(self.trainer, "val")
        self.meters.reset("val/")  # of a validation that was interrupted

    def on_test_start(self) -> None:
        check_one_loader(self.trainer, "test")
        self.meters.reset("test/")

    def on_train_epoch_end(self) -> None:
        self.log_meters("train")

    def on_validation_epoch_end(self) -> None:
        self.log_meters("val")

    def on_test_epoch_end(self) -> None:
        self.log_meters("test")
