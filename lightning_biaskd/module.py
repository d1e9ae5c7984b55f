"""Distilling a student from a teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_biaskd.bias import BiasStrategy, partition
from lightning_biaskd.callbacks.dynamic_weights import DynamicWeights
from lightning_biaskd.classes import ClassMap
from lightning_biaskd.classification import ClassificationModule, accuracy, may_read
from lightning_biaskd.distillers import KD, Distiller
from lightning_biaskd.errors import UserError
from lightning_biaskd.inputs import InputSpec, conversion
from lightning_biaskd.metrics import BeyondTeacher
from lightning_biaskd.outputs import FeatureTap, Outputs
from lightning_biaskd.teacher import FrozenTeacher

__all__ = ["ClassificationModule", "DistillationModule"]


class DistillationModule(ClassificationModule):
    r"""Trains a student under a frozen teacher, bias-aware unless told otherwise.

    .. math:: L = w_{ce}\,\mathrm{CE}(z^S, y) + w_{kd}\, L_{kd}

    with :math:`L_{kd}` the total of ``bias`` around ``distiller``, or the plain mean of ``distiller`` when ``bias`` is
    ``None``. A :class:`~lightning_biaskd.callbacks.DynamicWeights` callback is added if the Trainer has none.

    Beside the keys of :class:`ClassificationModule` (which are the student's):

    ======================== ===================================================================
    key                      meaning
    ======================== ===================================================================
    ``train/loss_kd``        the distillation term, mean of the epoch
    ``train/loss_right``     its part of right samples, before dynamic weighting
    ``train/loss_rectified`` its part of wrong samples, likewise
    ``bias/wrong_rate``      share of training views that the teacher gets wrong
    ``bias/gamma``           γ, the weight of hard knowledge
    ``val/teacher_acc1``     the teacher's top-1 accuracy; ``acc5`` and ``test/`` likewise
    ``val/gap``              student's top-1 less teacher's: above 0, the student is ahead
    ``val/student_only``     number of images that only the student gets right; beside it
                             ``teacher_only``, ``both`` and ``neither``, and ``test/`` likewise
    ======================== ===================================================================

    Args:
        student: any network that takes images and gives logits (B, C).
        teacher: a trained network with the same classes, or a :class:`~lightning_biaskd.FrozenTeacher`.
        distiller: the method. The module owns a copy of it, and of ``bias``.
        bias: the strategy, ``None`` for plain distillation.
        ce_weight: :math:`w_{ce}`.
        kd_weight: :math:`w_{kd}`.
        student_weights: the student's initial weights, as ``weights`` of :class:`ClassificationModule`.
        teacher_weights: the teacher's weights, see :func:`~lightning_biaskd.models.load_weights`.
        student_input: what the student is trained to see, as ``model_input`` of :class:`ClassificationModule`.
        teacher_input: what the teacher was trained to see, likewise: its mean and standard deviation, resolution, and
            grey or colour may differ from the data's and from the student's.
        teacher_classes: for each of the data set's classes, the teacher's output that stands for it, -1 for none;
            ``None`` where they are the same. See :class:`~lightning_biaskd.classes.ClassMap`.
        **kwargs: ``label_smoothing``, ``optimizer``, ``lr_scheduler``, ``lr_interval`` and ``data_input``, as of the
            base class.

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
        ce_weight: float = 0.5,
        kd_weight: float = 0.5,
        student_weights: str | None = None,
        teacher_weights: str | None = None,
        student_input: InputSpec | Literal["pretrained"] | None = None,
        teacher_input: InputSpec | Literal["pretrained"] | None = None,
        teacher_classes: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=student, weights=student_weights, model_input=student_input, **kwargs)
        self.hparams.pop("weights", None)  # student_weights, here
        self.distiller = copy.deepcopy(distiller)
        self.bias = copy.deepcopy(bias)
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        network = teacher.model if isinstance(teacher, FrozenTeacher) else teacher
        if {id(p) for p in network.parameters()} & {id(p) for p in student.parameters()}:
            raise UserError("teacher and student share parameters: give the teacher a network of its own")
        given = teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher)
        self.teacher = FrozenTeacher(
            network,
            teacher_weights,
            distiller.layers,
            distiller.head,
            conversion(network, teacher_input, self.data_input) or given.convert,
            given.classes if teacher_classes is None else ClassMap(teacher_classes),
        )
        self._teacher_as_built = teacher_weights is None
        self._tap = FeatureTap(student, distiller.layers, distiller.head)

    @property
    def student(self) -> nn.Module:
        """The network that is trained; alone, with clean names."""
        return self.model

    def losses(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor]:
        """See :class:`ClassificationModule`."""
        image, target = batch[:2]
        if target.ndim != 1:
            raise UserError(
                "mixed images have no single label for a teacher to be right on: distil without MixUp and CutMix "
                "(data.mix null)"
            )
        teacher, student = self.teacher(image), self.answer(image)
        self.check_batch(batch_idx, target, student.logits)
        self.check_teacher(batch_idx, student, teacher)
        ce = self.cross_entropy(student.logits, target)
        kd, parts = self.distillation_loss(student, teacher, target)
        return {
            "train/loss": self.ce_weight * ce + self.kd_weight * kd,
            "train/loss_ce": ce,
            "train/loss_kd": kd,
            "train/acc1": accuracy(student.logits, target),
            **parts,
        }

    def distillation_loss(self, student: Outputs, teacher: Outputs, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The distillation term, a scalar, and the scalars that are logged with it."""
        if self.bias is None:
            wrong = ~partition(teacher.logits, target)
            return self.distiller(student, teacher, target).mean(), {"bias/wrong_rate": wrong.float().mean()}
        loss = self.bias(self.distiller, student, teacher, target)
        return loss.total, {
            "train/loss_right": loss.right,
            "train/loss_rectified": loss.rectified,
            "bias/wrong_rate": loss.wrong_rate,
            "bias/gamma": self.bias.gamma,
        }

    def evaluate(self, stage: str, batch: Sequence[Any], batch_idx: int) -> None:
        """See :class:`ClassificationModule`; the teacher is counted too."""
        image, target = batch[:2]
        teacher, student = self.teacher(image), self.answer(image)
        self.check_batch(batch_idx, target, student.logits)
        self.check_teacher(batch_idx, student, teacher)
        self.count_accuracy(f"{stage}/", student.logits, target)
        self.count_accuracy(f"{stage}/teacher_", teacher.logits, target)
        beyond = self.meter(f"{stage}/beyond", lambda: MetricCollection([BeyondTeacher()], prefix=f"{stage}/"))
        beyond.update(student.logits, teacher.logits, target)

    def check_teacher(self, batch_idx: int, student: Outputs, teacher: Outputs) -> None:
        """Refuses a teacher that doesn't fit the student or is not finite; values are read as in :meth:`check_batch`.

        Raises:
            UserError: either.
        """
        if teacher.logits.shape != student.logits.shape:
            raise UserError(
                f"the teacher gives {teacher.logits.shape[1]} classes and the student {student.logits.shape[1]}: "
                "both must be built for the same classes, or teacher_classes say which output stands for which"
            )
        if may_read(teacher.logits, batch_idx) and not bool(teacher.logits.isfinite().all()):
            raise UserError(
                f"the teacher's logits hold NaN or infinity in batch {batch_idx}: check its weights and the "
                "normalisation of its input; nothing was updated in this step"
            )

    def log_meters(self, stage: str) -> dict[str, Tensor]:
        """See :class:`ClassificationModule`; adds the gap between student and teacher."""
        values = super().log_meters(stage)
        if f"{stage}/teacher_acc1" in values:
            gap = values[f"{stage}/acc1"] - values[f"{stage}/teacher_acc1"]
            self.log(f"{stage}/gap", gap, prog_bar=True, sync_dist=True)
        return values

    def setup(self, stage: str) -> None:
        super().setup(stage)
        cfg = getattr(self.teacher.model, "pretrained_cfg", None)
        if cfg and self._teacher_as_built and self.teacher.convert is None and self.data_input is not None:
            published = InputSpec.of_pretrained(self.teacher.model)
            if (published.mean, published.std) != (self.data_input.mean, self.data_input.std):
                rank_zero_warn(
                    f"the data are normalised by mean {self.data_input.mean} and std {self.data_input.std}, timm's "
                    f"published {type(self.teacher.model).__name__} by {published.mean} and {published.std}: if the "
                    "teacher is that one, set teacher_input to 'pretrained'"
                )

    def on_train_epoch_start(self) -> None:
        self.distiller.set_epoch(self.current_epoch)

    def configure_callbacks(self) -> list[Callback]:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        scheduled = any(isinstance(callback, DynamicWeights) for callback in callbacks)
        return [] if self.bias is None or scheduled else [DynamicWeights()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["method"] = self._method()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("method", self._method())
        if saved != self._method():
            rank_zero_warn(f"the checkpoint was trained with {saved}; this module distils with {self._method()}")

    def _method(self) -> str:
        return " ".join(f"{self.distiller!r} and {self.bias!r}".split())
