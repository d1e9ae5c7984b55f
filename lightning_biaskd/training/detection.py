"""Training a detector: a teacher, or a student alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.metrics import DetectionScores
from lightning_biaskd.metrics.class_names import class_names_of
from lightning_biaskd.training.boxed_batches import boxed_batch, boxed_images
from lightning_biaskd.training.detectors import IGNORED, as_rows, box_loss, check_detector, classes_of, sampled
from lightning_biaskd.training.label_loss import accuracy, cross_entropy, of_all_ranks
from lightning_biaskd.training.network import NetworkModule
from lightning_biaskd.training.step import Step


class DetectionModule(NetworkModule):
    """Trains a two-stage detector of torchvision: a teacher, or a student alone as the baseline.

    Batches are ``(images, targets, …)`` as torchvision takes them: lists of tensors (3, H, W) in [0, 1], and of
    mappings with ``boxes`` (n, 4) and ``labels`` (n,).

    ============================= ==================================================================================
    key                           meaning
    ============================= ==================================================================================
    ``train/loss``                what is minimised, mean of the epoch: the sum of the four losses below
    ``train/loss_ce``             cross-entropy of the proposals' classes, the background included
    ``train/loss_box``            of their boxes
    ``train/loss_objectness``     of the region proposal network; also ``train/loss_rpn_box_reg``
    ``train/acc1``                share of the proposals whose class is right
    ``val/map``                   mean average precision, in [0, 1]; also ``val/map_50``, ``val/map/CLASS`` and others,
                                  see :class:`~lightning_biaskd.metrics.DetectionScores`
    ============================= ==================================================================================

    Every ``val/`` key also exists as ``test/``.

    Args:
        model: a Faster R-CNN of torchvision, or of :func:`~lightning_biaskd.models.faster_rcnn`.
        weights: initial weights, see :class:`~lightning_biaskd.ClassificationModule`.
        optimizer: from parameters to optimizer.
        lr_scheduler: from optimizer to scheduler, ``None`` for a constant rate.
        lr_interval: whether the scheduler steps every ``"epoch"`` or every ``"step"``.
        lr_batch_size: the global batch size that the learning rate is meant for, see
            :class:`~lightning_biaskd.ClassificationModule`.

    Raises:
        UserError: a network that is no two-stage detector, such as RetinaNet, FCOS or SSD, or that predicts masks or
            keypoints; in training, another number of classes than the data's, labels out of range or boxes without
            area; a Trainer in half precision without float32 weights.
    """

    metrics = None
    ignore_index = IGNORED

    def __init__(
        self,
        model: nn.Module,
        weights: str | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(
            params, lr=0.005, momentum=0.9, weight_decay=5e-4
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_batch_size: int | None = None,
    ) -> None:
        check_detector(model)
        super().__init__(model, weights, optimizer, lr_scheduler, lr_interval, lr_batch_size)

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each image (3, H, W), in eval mode."""
        found: list[dict[str, Tensor]] = self.model(list(images))
        return found

    def losses(self, batch: Sequence[Any], batch_idx: int) -> Step:
        images, targets = batch[:2]
        found, own = sampled(self.model, images, targets)
        outputs, _ = as_rows(self.model, own, found)
        flat, deltas = torch.cat(found.labels), torch.cat(found.deltas)
        known = torch.ones_like(flat, dtype=torch.bool)
        ce = of_all_ranks(cross_entropy(own.logits, flat).mean(), known)
        parts = {"ce": ce, "box": of_all_ranks(box_loss(own, flat, deltas), known)}
        parts |= {name.removeprefix("loss_"): value for name, value in found.losses.items()}
        loss = torch.stack(list(parts.values())).sum()
        logged = {"train/loss": loss, **{f"train/loss_{name}": value for name, value in parts.items()}}
        logged["train/acc1"] = accuracy(own.logits, flat)
        return Step(loss, {name: value.detach() for name, value in logged.items()}, outputs)

    def checked_batch(self, batch: Any, batch_idx: int) -> Sequence[Any]:
        return boxed_batch(batch, batch_idx, self.num_classes or classes_of(self.model))

    def evaluate(self, stage: str, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor] | None:
        images, targets = batch[:2]
        if rows := self.own_rows(stage, batch, batch_idx):
            self.count_boxes(f"{stage}/", self(images[:rows]), targets[:rows])
        return None

    def count_boxes(
        self, prefix: str, found: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Adds a batch to the scores logged under ``{prefix}map`` and so on.

        Args:
            prefix: ``"val/"``, ``"test/teacher_"`` and so on.
            found: ``boxes``, ``labels`` and ``scores`` of each image.
            targets: ``boxes`` and ``labels`` of each image; objects whose ``iscrowd`` is 1 are ignored.
        """
        names = class_names_of(getattr(self._trainer, "datamodule", None))
        self.meters.update(prefix, lambda: DetectionScores(names, prefix), found, targets)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each image."""
        return self(boxed_images(batch, batch_idx))  # type: ignore[no-any-return]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        precision = str(self.trainer.precision)
        if precision in ("16-true", "bf16-true"):
            raise UserError(
                f"trainer.precision {precision} rounds the corners of boxes to a few pixels: choose "
                f"{precision.replace('true', 'mixed')}"
            )
        own = classes_of(self.model)
        if None not in (own, self.num_classes) and own != self.num_classes:
            raise UserError(
                f"{type(self.model).__name__} has num_classes={own}, and the data have {self.num_classes}, the "
                f"background included: build the network with num_classes={self.num_classes}"
            )
        if stage != "predict":
            DetectionScores()  # which may not be installed


_default_optimizer = inspect.signature(DetectionModule).parameters["optimizer"].default
_default_optimizer.__qualname__ = "_default_optimizer"  # so that it can be pickled for spawned processes
