"""Distilling a detector from a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_biaskd.bias import BiasStrategy
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.distillers import KD
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.training.checks import check_teacher
from lightning_biaskd.training.detection import DetectionModule
from lightning_biaskd.training.detection_step import DetectionDistillation
from lightning_biaskd.training.method import MethodModule
from lightning_biaskd.training.step import Step

_UNTRAINED = 0.005


class DetectionDistillationModule(MethodModule, DetectionModule):
    """Trains a two-stage detector under a frozen teacher, bias-aware unless told otherwise.

    The step itself is :class:`~lightning_biaskd.training.detection_step.DetectionDistillation`. In addition to the keys
    of :class:`DetectionModule`, which are the student's, it logs:

    ======================== ===================================================================
    key                      meaning
    ======================== ===================================================================
    ``train/loss_kd``        the distillation term on the classes of proposals
    ``train/loss_box_kd``    the distillation term on their boxes
    ``train/loss_right``     as of :class:`~lightning_biaskd.DistillationModule`, and all ``bias/`` keys; a sample is a
                             proposal
    ``val/teacher_map``      the teacher's mean average precision (also ``map_50`` and so on)
    ``val/gap``              student's ``map`` minus teacher's: above 0, the student is ahead
    ======================== ===================================================================

    Args:
        student: a Faster R-CNN of torchvision, or of :func:`~lightning_biaskd.models.faster_rcnn`.
        teacher: another, trained, with the same classes, which resizes and normalises images in the same way.
        distiller: the method. The module owns a copy of it, and of ``bias``.
        bias: the strategy, ``None`` for plain distillation.
        ce_weight: weight of the cross-entropy.
        kd_weight: weight of the distillation term on classes, or on features.
        box_weight: weight of the distillation term on boxes.
        student_weights: the student's initial weights, as ``weights`` of :class:`DetectionModule`.
        teacher_weights: the teacher's weights, see :func:`~lightning_biaskd.models.load_weights`.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``lr_interval`` and ``lr_batch_size``, see :class:`DetectionModule`.

    Raises:
        UserError: as :class:`DetectionModule`; networks that differ in classes or in how they take images, a method
            that has no loss for boxes, or NaN in the teacher's logits.
    """

    distillation: DetectionDistillation

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distiller: Distiller = KD(),  # noqa: B008  (copied below, and read by the command line as the default)
        bias: BiasStrategy | None = BiasStrategy(),  # noqa: B008
        ce_weight: float = 1.0,
        kd_weight: float = 0.5,
        box_weight: float = 0.5,
        student_weights: str | None = None,
        teacher_weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=student, weights=student_weights, **kwargs)
        frozen = FrozenTeacher.of(teacher).configured(teacher_weights)
        step = DetectionDistillation(student, frozen, distiller, bias, ce_weight, kd_weight, box_weight)
        self.register_parts(step)

    @property
    def student(self) -> nn.Module:
        """The network that is trained; alone, with clean names."""
        return self.model

    def losses(self, batch: Sequence[Any], batch_idx: int) -> Step:
        step: Step = self.distillation(*batch[:3])
        assert step.teacher is not None
        check_teacher(step.teacher.logits, step.student.logits, batch_idx)
        return step

    def callback_outputs(self, student: Outputs, teacher: Outputs | None, target: Any) -> dict[str, Tensor]:
        """What callbacks find in the ``outputs`` of a batch: logits (B, C, R) without gradient, and labels (B, R)."""
        assert teacher is not None
        return {"student_logits": student.logits.detach(), "teacher_logits": teacher.logits, "target": target}

    def evaluate(self, stage: str, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor] | None:
        super().evaluate(stage, batch, batch_idx)
        images, targets = batch[:2]
        if rows := self.own_rows(stage, batch, batch_idx):
            found = self.teacher.model(list(images[:rows]))
            self.count_boxes(f"{stage}/teacher_", found, targets[:rows])
        return None

    def log_meters(self, stage: str) -> dict[str, Tensor]:
        """Logs and empties the meters of a stage, and logs the gap between student and teacher."""
        values = super().log_meters(stage)
        if f"{stage}/teacher_map" in values:
            own, theirs = values[f"{stage}/map"], values[f"{stage}/teacher_map"]
            self.log(f"{stage}/gap", own - theirs, prog_bar=True, sync_dist=True)
            if self.teacher.as_built and theirs < _UNTRAINED and not self.teacher.told_untrained:
                self.teacher.told_untrained = True
                rank_zero_warn(
                    f"the teacher {type(self.teacher.model).__name__} was given no weights and finds next to nothing "
                    f"(mean average precision {theirs:.1%}): set teacher_weights, or pretrained weights of the network"
                )
        return values
