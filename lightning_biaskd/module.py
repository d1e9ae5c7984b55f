"""The training story: a classifier, and a classifier that learns from a teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_biaskd.bias import BiasStrategy, partition
from lightning_biaskd.callbacks.dynamic_weights import DynamicWeights
from lightning_biaskd.distillers import KD, Distiller
from lightning_biaskd.errors import UserError
from lightning_biaskd.metrics import BeyondTeacher, Means, topk_accuracies
from lightning_biaskd.models.weights import load_weights, mismatch
from lightning_biaskd.outputs import FeatureTap, Outputs, at_least_float32
from lightning_biaskd.teacher import FrozenTeacher

_OBJECTS = ("model", "student", "teacher", "distiller", "bias", "optimizer", "lr_scheduler")


class ClassificationModule(LightningModule):
    """Trains a classifier: a teacher, or a student alone as the baseline.

    Batches are ``(image, target, …)``. Made to be subclassed: :meth:`losses` is what a training step minimises and
    logs, :meth:`evaluate` is what an evaluation step counts.

    =================== =======================================================================
    key                 meaning
    =================== =======================================================================
    ``train/loss``      what is minimised, mean of the epoch
    ``train/loss_step`` the same in one step, every ``log_every_n_steps``
    ``train/loss_ce``   cross-entropy, mean of the epoch
    ``train/acc1``      top-1 accuracy on the training views, mean of the epoch, in [0, 1]
    ``val/acc1``        top-1 accuracy, in [0, 1]; ``test/acc1`` likewise
    ``val/acc5``        top-5 accuracy, from five classes on; ``test/acc5`` likewise
    =================== =======================================================================

    Args:
        model: any network that takes images and gives logits (B, C).
        weights: initial weights, see :func:`~lightning_biaskd.models.load_weights`. They start a new run; a module
            whose weights came from a checkpoint of ours doesn't read them.
        label_smoothing: of the cross-entropy.
        optimizer: from parameters to optimizer.
        lr_scheduler: from optimizer to scheduler, ``None`` for a constant rate.
        lr_interval: whether the scheduler steps every ``"epoch"`` or every ``"step"``.

    Raises:
        UserError: weights that don't fit; in training, labels out of range or other classes than the data's.

    Example:
        >>> from lightning_biaskd.models import resnet8
        >>> module = ClassificationModule(resnet8(num_classes=10))
        >>> module(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        model: nn.Module,
        weights: str | None = None,
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=_OBJECTS, logger=False)
        if (
            "_instantiator" in self.hparams
        ):  # built by LightningCLI, which hands objects over as class_path and init_args
            self.save_hyperparameters(logger=False)
        self.model = model
        self.weights = weights
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.num_classes: int | None = None
        self._loaded = False
        self._tap = FeatureTap(model)
        self._meters = nn.ModuleDict()

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C) of images (B, …)."""
        return self._tap(image).logits

    def losses(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor]:
        """What one training step minimises, under ``"train/loss"``, and what it logs beside it.

        Args:
            batch: ``(image, target, …)``.
            batch_idx: number of the batch in the epoch.

        Returns:
            Scalars by the names that they are logged under.
        """
        image, target = batch[:2]
        logits = self(image)
        self.check_batch(batch_idx, target, logits)
        ce = self.cross_entropy(logits, target)
        return {"train/loss": ce, "train/loss_ce": ce, "train/acc1": accuracy(logits, target)}

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, C) against labels (B,), in float32 at least."""
        return F.cross_entropy(at_least_float32(logits), target, label_smoothing=self.label_smoothing)

    def evaluate(self, stage: str, batch: Sequence[Any], batch_idx: int) -> None:
        """Counts one batch of an evaluation; its result is logged at the end of the epoch.

        Args:
            stage: ``"val"`` or ``"test"``.
            batch: ``(image, target, …)``.
            batch_idx: number of the batch.
        """
        image, target = batch[:2]
        logits = self(image)
        self.check_batch(batch_idx, target, logits)
        self.count_accuracy(f"{stage}/", logits, target)

    def check_batch(self, batch_idx: int, target: Tensor, logits: Tensor) -> None:
        """Refuses a batch whose labels and logits can't belong together.

        Shapes are compared always. Values are read on the CPU always and elsewhere in the first batch only, because
        reading them waits for the device.

        Raises:
            UserError: another number of classes than the data's, or labels out of range.
        """
        classes = self.num_classes or logits.shape[1]
        if logits.shape[1] != classes:
            raise UserError(
                f"{type(self.model).__name__} gives {logits.shape[1]} classes and the data have {classes}: "
                f"build the network with num_classes={classes}"
            )
        if not _may_read(target, batch_idx):
            return
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= classes:
            raise UserError(
                f"labels lie in [{low}, {high}], outside [0, {classes - 1}]: number the classes from 0 and build the "
                "network with as many as there are"
            )

    def count_accuracy(self, prefix: str, logits: Tensor, target: Tensor) -> None:
        """Adds a batch to the accuracies logged under ``{prefix}acc1`` and ``{prefix}acc5``.

        Args:
            prefix: ``"val/"``, ``"test/teacher_"`` and so on.
            logits: (B, C).
            target: (B,) labels.
        """
        self.meter(prefix, lambda: topk_accuracies(logits.shape[1], prefix)).update(logits, target)

    def meter(self, name: str, build: Callable[[], Metric | MetricCollection]) -> Any:
        """The metric of that name, built at its first use; :meth:`log_meters` logs and empties it."""
        if name not in self._meters:
            self._meters[name] = build().to(self.device)
        return self._meters[name]

    def log_meters(self, stage: str) -> dict[str, Tensor]:
        """Logs and empties the meters whose name begins with the stage.

        Returns:
            What was logged.
        """
        values: dict[str, Tensor] = {}
        for name, meter in self._meters.items():
            if name.startswith(f"{stage}/"):
                values |= {key: value.float() for key, value in meter.compute().items()}  # type: ignore[operator]
                meter.reset()  # type: ignore[operator]
        for key, value in values.items():
            self.log(key, value, prog_bar=key.startswith("val/") and key.endswith("acc1"), sync_dist=True)
        return values

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        losses = self.losses(batch, batch_idx)
        self.meter("train/", lambda: Means(list(losses))).update(list(losses.values()), len(batch[1]))
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 in a barebones Trainer
        if every and (self.global_step + 1) % every == 0:
            self.log("train/loss_step", losses["train/loss"].detach(), prog_bar=True)
        return losses["train/loss"]

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self.evaluate("val", batch, batch_idx)

    def test_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self.evaluate("test", batch, batch_idx)

    def predict_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Logits (B, C)."""
        logits: Tensor = self(batch[0])
        return logits

    def on_train_epoch_end(self) -> None:
        self.log_meters("train")

    def on_validation_epoch_end(self) -> None:
        self.log_meters("val")

    def on_test_epoch_end(self) -> None:
        self.log_meters("test")

    def setup(self, stage: str) -> None:
        self.num_classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)

    def on_fit_start(self) -> None:
        if self.weights is not None and not self._loaded:
            load_weights(self.model, self.weights)
        if not self.model.training:
            rank_zero_warn(
                f"{type(self.model).__name__} came in eval mode, as loaded networks do; it is put in train mode"
            )
            self.model.train()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        problem = mismatch(self, checkpoint["state_dict"], self.strict_loading)
        if problem:
            raise UserError(f"the checkpoint does not fit {type(self.model).__name__}: {problem}")
        self._loaded = True

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
            scheduler: Any = self.lr_scheduler(optimizer) if self.lr_scheduler is not None else None
        except ValueError as error:
            raise UserError(f"the optimizer or its scheduler refuses its arguments: {error}") from error
        if scheduler is None:
            return optimizer
        schedule = {"scheduler": scheduler, "interval": self.lr_interval}
        if hasattr(scheduler, "monitor"):  # ReduceLROnPlateau
            schedule["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}


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
        **kwargs: ``label_smoothing``, ``optimizer``, ``lr_scheduler`` and ``lr_interval``, as of the base class.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(model=student, weights=student_weights, **kwargs)
        self.hparams.pop("weights", None)  # student_weights, here
        self.distiller = copy.deepcopy(distiller)
        self.bias = copy.deepcopy(bias)
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        network = teacher.model if isinstance(teacher, FrozenTeacher) else teacher
        if {id(p) for p in network.parameters()} & {id(p) for p in student.parameters()}:
            raise UserError("teacher and student share parameters: give the teacher a network of its own")
        self.teacher = FrozenTeacher(network, teacher_weights, distiller.layers, distiller.head)
        self._tap = FeatureTap(student, distiller.layers, distiller.head)

    @property
    def student(self) -> nn.Module:
        """The network that is trained; alone, with clean names."""
        return self.model

    def losses(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor]:
        """See :class:`ClassificationModule`."""
        image, target = batch[:2]
        teacher, student = self.teacher(image), self._tap(image)
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
        teacher, student = self.teacher(image), self._tap(image)
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
                "both must be built for the same classes"
            )
        if _may_read(teacher.logits, batch_idx) and not bool(teacher.logits.isfinite().all()):
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

    def on_train_epoch_start(self) -> None:
        self.distiller.set_epoch(self.current_epoch)

    def configure_callbacks(self) -> list[Callback]:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        scheduled = any(isinstance(callback, DynamicWeights) for callback in callbacks)
        return [] if self.bias is None or scheduled else [DynamicWeights()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["method"] = self._method()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("method", self._method())
        if saved != self._method():
            rank_zero_warn(f"the checkpoint was trained with {saved}; this module distils with {self._method()}")

    def _method(self) -> str:
        return " ".join(f"{self.distiller!r} and {self.bias!r}".split())


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of rows of logits (B, C) whose first class is the label."""
    return (logits.detach().argmax(1) == target).float().mean()


def _may_read(tensor: Tensor, batch_idx: int) -> bool:
    return batch_idx == 0 or tensor.device.type == "cpu"
