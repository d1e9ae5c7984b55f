"""Distilling a student from a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_biaskd.bias import BiasStrategy
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.distillers import KD
from lightning_biaskd.metrics import BeyondTeacher
from lightning_biaskd.networks.inputs import InputSpec, warn_of_pretrained
from lightning_biaskd.networks.named_inputs import Input, one_of
from lightning_biaskd.networks.outputs import Outputs, resized, with_index, with_logits
from lightning_biaskd.teachers.backends import Backend, Precision
from lightning_biaskd.teachers.cache import TeacherCache
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.training.cached_teacher import CachedTeacherModule
from lightning_biaskd.training.checks import check_index, check_pairs, check_teacher, check_views
from lightning_biaskd.training.classification import ClassificationModule
from lightning_biaskd.training.rehearsal import RehearsedModule
from lightning_biaskd.training.sharded import ShardedModule
from lightning_biaskd.training.step import Distillation, Step
from lightning_biaskd.training.untrained_teacher import warn_of_untrained


class DistillationModule(ShardedModule, RehearsedModule, CachedTeacherModule, ClassificationModule):
    r"""Trains a student under a frozen teacher, bias-aware unless told otherwise.

    The step itself is :class:`~lightning_biaskd.training.step.Distillation`, which this module connects to a Trainer:
    loaders, metrics, checkpoints and the teacher's cache. A :class:`~lightning_biaskd.callbacks.DynamicWeights`
    callback is added if the strategy uses γ and the Trainer has none.

    In addition to the keys of :class:`ClassificationModule`, which are the student's, it logs:

    ======================== ===================================================================
    key                      meaning
    ======================== ===================================================================
    ``train/loss_kd``        the distillation term, mean of the epoch
    ``train/loss_right``     its part from right samples, before dynamic weighting
    ``train/loss_rectified`` its part from wrong samples, before dynamic weighting
    ``bias/wrong_rate``      share of training views that the teacher gets wrong
    ``bias/gamma``           γ, the weight of corrected samples, if the strategy uses it
    ``bias/trust``           mean share of its weight that the teacher keeps, if the strategy has ``trust``
    ``bias/label_trust``     mean share of a correction that is made, if the strategy has ``label_trust``
    ``val/teacher_acc1``     the teacher's top-1 accuracy (also ``acc5``)
    ``val/gap``              student's top-1 (``miou`` of maps) minus teacher's: above 0, the student is ahead
    ``val/student_only``     number of images that only the student gets right (also
                             ``teacher_only``, ``both`` and ``neither``)
    ======================== ===================================================================

    Every ``val/`` key also exists as ``test/``.

    Args:
        student: any network that takes images and gives logits (B, C).
        teacher: a trained network with the same classes, a :class:`~lightning_biaskd.FrozenTeacher`, or several as an
            :class:`~lightning_biaskd.EnsembleTeacher`.
        distiller: the method. The module owns a copy of it, and of ``bias``.
        bias: the strategy, ``None`` for plain distillation.
        ce_weight: :math:`w_{ce}`.
        kd_weight: :math:`w_{kd}`.
        student_weights: the student's initial weights, as ``weights`` of :class:`ClassificationModule`.
        teacher_weights: the teacher's weights, see :func:`~lightning_biaskd.models.load_weights`.
        student_input: the student's training format, as ``model_input`` of :class:`ClassificationModule`.
        teacher_input: the teacher's training format, in the same form. Its mean and standard deviation, resolution and
            number of channels may differ from the data's and from the student's.
        teacher_classes: for each class of the data set, the index of the teacher's output for it, or -1 for none;
            ``None`` if both have the same classes. See :class:`~lightning_biaskd.networks.class_map.ClassMap`.
        teacher_backend: how the teacher is run: ``"plain"``, ``"fast"`` (the default), ``"compile"`` or
            ``"onnxruntime"``, see :func:`~lightning_biaskd.teachers.backends.accelerate`.
        teacher_precision: ``"32"``, ``"bf16"`` or ``"16"``, of its weights and arithmetic; ``None`` for the Trainer's.
        teacher_cache: where the teacher's outputs are stored, a folder or a :class:`~lightning_biaskd.TeacherCache`;
            ``None`` runs the teacher every time.
        **kwargs: ``label_smoothing``, ``optimizer``, ``lr_scheduler``, ``lr_interval``, ``lr_batch_size``,
            ``data_input``, ``channels_last``, ``compile``, ``metrics`` and ``ignore_index``, see the base class.
            ``compile`` applies to student, teacher and loss.

    Raises:
        UserError: teacher and student share parameters; weights that don't fit; in training, teacher and student that
            disagree on the classes, or NaN in the teacher's logits.

    Example:
        >>> from lightning_biaskd.models import resnet8, resnet14
        >>> module = DistillationModule(resnet8(10), resnet14(10))
        >>> sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in resnet8(10).parameters())
        True
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distiller: Distiller = KD(),  # noqa: B008  (copied below, and read by the command line as the default)
        bias: BiasStrategy | None = BiasStrategy(),  # noqa: B008
        ce_weight: float = 1.0,
        kd_weight: float = 0.5,
        student_weights: str | None = None,
        teacher_weights: str | None = None,
        student_input: InputSpec | Literal["pretrained"] | None = None,
        teacher_input: InputSpec | Literal["pretrained"] | None = None,
        teacher_classes: Sequence[int] | None = None,
        teacher_backend: Backend | None = None,
        teacher_precision: Precision | None = None,
        teacher_cache: TeacherCache | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=student, weights=student_weights, model_input=student_input, **kwargs)
        settings = teacher_input, self.data_input, teacher_classes, teacher_backend, teacher_precision
        frozen = FrozenTeacher.of(teacher).configured(teacher_weights, *settings)
        weights = ce_weight, kd_weight, self.label_smoothing
        step = Distillation(student, frozen, distiller, bias, *weights, self.convert, self.ignore_index)
        step.cross_entropy = self.cross_entropy  # type: ignore[method-assign]  # which a subclass may override
        self.register_parts(step)
        self.teacher_cache = TeacherCache(teacher_cache) if isinstance(teacher_cache, str) else teacher_cache
        if self.teacher_cache is not None:
            self.teacher_cache.check(distiller)

    @property
    def student(self) -> nn.Module:
        """The network that is trained; alone, with clean names."""
        return self.model

    @property
    def ce_weight(self) -> float:
        """Weight of the cross-entropy."""
        return self.distillation.ce_weight

    @property
    def kd_weight(self) -> float:
        """Weight of the distillation term."""
        return self.distillation.kd_weight

    def deployed(self) -> nn.Module:
        """The network to deploy, see :meth:`Distillation.deployed`."""
        return self.distillation.deployed()

    def outputs_of(self, image: Input) -> Outputs:
        """The student's outputs for images (B, …), or named tensors; its logits are those of the network to deploy."""
        return self.distillation.outputs_of(image)

    def losses(self, batch: Sequence[Any], batch_idx: int) -> Step:
        """One training step of :class:`Distillation` on a batch whose labels, teacher and indices are checked first.

        ``student`` of the step has gradient, so an override can add a term that reads the student's outputs:
        ``step._replace(loss=step.loss + term(step.student))``.

        Args:
            batch: ``(image, target, …)``; the index of each image in the data set comes third.
            batch_idx: index of the batch in the epoch.
        """
        image, target = batch[:2]
        teacher = self.teacher_outputs_of(batch)
        student = self.outputs_of(image)
        self.teacher.join(one_of(image).device)
        if not target.is_floating_point():  # a step refuses mixed labels
            self.check_batch(batch_idx, target, student.logits)
            check_teacher(teacher.logits, student.logits, batch_idx)
        index = batch[2] if len(batch) > 2 else None
        check_pairs(self.distiller, len(target), batch_idx)
        if (views := self.distiller.needs.views) > 1:
            check_views(index, views, batch_idx)
        if self.distiller.needs.index:
            known = self.rehearsed["num_samples"] if self.rehearsed else None
            student = with_index(student, check_index(index, known, batch_idx))
        return self.distillation.step(student, teacher, target)

    def callback_outputs(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        """What callbacks find in the ``outputs`` of a batch: (B, C, …) logits without gradient, and (B, …) labels."""
        assert teacher is not None
        return {"student_logits": student.logits.detach(), "teacher_logits": teacher.logits, "target": target}

    def evaluate(self, stage: str, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor] | None:
        """Counts one batch of an evaluation, for student and teacher.

        Args:
            stage: ``"val"`` or ``"test"``.
            batch: ``(image, target, …)``.
            batch_idx: index of the batch.

        Returns:
            What callbacks find in the ``outputs`` of ``on_validation_batch_end``, see :meth:`callback_outputs`.
        """
        teacher, student = self.teacher_outputs_of(batch), self.outputs_of(batch[0])
        self.teacher.join(one_of(batch[0]).device)
        teacher, student = (with_logits(x, resized(x.logits, batch[1].shape[1:])) for x in (teacher, student))
        self.check_batch(batch_idx, batch[1], student.logits)
        check_teacher(teacher.logits, student.logits, batch_idx)
        rows = self.own_rows(stage, batch, batch_idx)
        target = batch[1][:rows]
        outputs = self.callback_outputs(_first(student, rows), _first(teacher, rows), target)
        if rows:
            self.count_accuracy(f"{stage}/", outputs["student_logits"], target)
            self.count_accuracy(f"{stage}/teacher_", outputs["teacher_logits"], target)
            self.meters.update(
                f"{stage}/beyond",
                lambda: MetricCollection([BeyondTeacher(self.ignore_index)], prefix=f"{stage}/"),
                *(outputs["student_logits"], outputs["teacher_logits"], target),
            )
        return outputs

    def log_meters(self, stage: str) -> dict[str, Tensor]:
        """Logs and empties the meters of a stage, and logs the gap between student and teacher."""
        values = super().log_meters(stage)
        self._warn_of_untrained(stage, values)
        if f"{stage}/teacher_acc1" in values:
            score = "miou" if f"{stage}/miou" in values else "acc1"
            gap = values[f"{stage}/{score}"] - values[f"{stage}/teacher_{score}"]
            self.log(f"{stage}/gap", gap, prog_bar=True, sync_dist=True)
        return values

    def _warn_of_untrained(self, stage: str, values: dict[str, Tensor]) -> None:
        right = values.get(f"{stage}/teacher_acc1", 1 - values.get("bias/wrong_rate", torch.tensor(0.0)))
        if self.num_classes is not None:
            warn_of_untrained(self.teacher, float(right), self.num_classes)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for teacher in self.teacher.members:
            if teacher.as_built and teacher.convert is None and self.data_input is not None:
                warn_of_pretrained(teacher.model, self.data_input)

    def connect_data(self, datamodule: object) -> None:
        super().connect_data(datamodule)
        self.distillation.ignore_index = self.ignore_index

    def parts_to_compile(self) -> list[nn.Module]:
        """The student and the loss; the teacher compiles itself."""
        return [*super().parts_to_compile(), self.bias]

    def on_fit_start(self) -> None:
        if self.compile_mode and self.teacher.backend == "fast":
            self.teacher.backend = "compile"
        super().on_fit_start()


def _first(outputs: Outputs, rows: int) -> Outputs:
    return with_logits(outputs, outputs.logits[:rows])
