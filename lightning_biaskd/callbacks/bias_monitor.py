"""The teacher's bias and what the student makes of it, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lightning_biaskd.callbacks.history import EpochPicture
from lightning_biaskd.metrics import (
    Agreement,
    BeyondTeacher,
    BiasRate,
    CalibrationError,
    Contingency,
    DistributionGap,
    NotOnTop,
    confused_pairs,
)
from lightning_biaskd.plotting import AMBER, BLUE, GREY, ORANGE, bars, lines, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_biaskd.training.distillation import DistillationModule


class BiasMonitor(EpochPicture):
    """Watches where the teacher is wrong, what the strategy does there, and whom the student follows.

    It counts on the device what a :class:`~lightning_biaskd.DistillationModule` saw in its steps, training views and
    validation images alike, and logs once per epoch, beside γ, the overall wrong-rate and the losses of the right and
    the rectified part, which the module logs. A picture of all that is ``bias_monitor.png`` in the run's folder, and
    goes to every logger that takes pictures (TensorBoard, Weights & Biases, MLflow).

    ================================= ==================================================================================
    key                               meaning
    ================================= ==================================================================================
    ``bias/wrong_rate/CLASS``         share of the class's training views that the teacher gets wrong; with up to
                                      ``per_class`` classes
    ``bias/not_on_top``               share of rectified answers whose label did not end on top
    ``train/on_teacher_right``        student's accuracy on the training views that the teacher gets right; in train
                                      mode; likewise ``train/on_teacher_wrong``
    ``train/agreement``               share of training views to which both give the same first class
    ``val/on_teacher_right``          the same three on validation images; ``val/on_teacher_wrong``, ``val/agreement``
    ``val/kl``, ``val/js``            distance of the student's distribution from the teacher's, in nats
    ``val/calibration_error``         expected calibration error, student
    ``val/teacher_calibration_error`` likewise, teacher
    ================================= ==================================================================================

    Rates are in [0, 1]. One that has no sample in an epoch is not logged. N processes count as one. A subclass of the
    module keeps being watched as long as its steps return what those of the base class do.

    Args:
        per_class: how many classes get a key of their own and a bar in the picture; a data set of more classes has no
            such keys, and bars for those with the highest rates.

    Raises:
        UserError: at the start, if matplotlib is missing.
    """

    name = "bias_monitor"

    def __init__(self, per_class: int = 20) -> None:
        super().__init__()
        self.per_class = per_class
        self._meters: dict[str, Metric] = {}
        self._confusion: Tensor | None = None
        self._classes: list[str] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, "teacher"):
            rank_zero_warn("BiasMonitor found no teacher to watch: this run distils nothing")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _has_answers(outputs):
            student, teacher, target = outputs["student_logits"], outputs["teacher_logits"], outputs["target"]
            self._count("train", pl_module, student, teacher, target)
            self._meter("train/bias", pl_module, lambda: BiasRate(teacher.shape[1])).update(teacher, target)
            self._count_rectified(cast("DistillationModule", pl_module), teacher, target)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or not _has_answers(outputs) or not len(outputs["target"]):
            return
        student, teacher, target = outputs["student_logits"], outputs["teacher_logits"], outputs["target"]
        self._count("val", pl_module, student, teacher, target)
        self._meter("val/gap", pl_module, DistributionGap).update(student, teacher)
        for key, logits in (("val/calibration_error", student), ("val/teacher_calibration_error", teacher)):
            self._meter(key, pl_module, lambda: CalibrationError(teacher.shape[1])).update(logits, target)

    def _count(self, stage: str, module: LightningModule, student: Tensor, teacher: Tensor, target: Tensor) -> None:
        self._meter(f"{stage}/beyond", module, BeyondTeacher).update(student, teacher, target)
        self._meter(f"{stage}/agreement", module, Agreement).update(student, teacher)

    @torch.no_grad()
    def _count_rectified(self, module: DistillationModule, teacher: Tensor, target: Tensor) -> None:
        bias = module.bias
        if bias is None:
            return
        for term, _ in module.distiller.terms():
            rectified = bias.rectified(term, teacher, target)
            if rectified is not None:
                self._meter("train/not_on_top", module, NotOnTop).update(teacher, rectified, target)

    def _meter(self, name: str, module: LightningModule, build: Any) -> Any:
        if name not in self._meters:
            self._meters[name] = build().to(module.device)
        return self._meters[name]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        values = self._taken("train")
        if "train/bias" in values:
            per_class = values["train/bias"]["per_class"]
            self._confusion = values["train/bias"]["confusion"].cpu()
            names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
            self._classes = [str(name) for name in names or range(len(per_class))]
            if len(per_class) <= self.per_class:
                rates = zip(self._classes, per_class, strict=True)
                self._log(pl_module, {f"bias/wrong_rate/{name}": rate for name, rate in rates})
        if "train/not_on_top" in values:
            self._log(pl_module, {"bias/not_on_top": values["train/not_on_top"]})
        self._log_answers(pl_module, "train", values)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self._taken("val")
        self._log_answers(pl_module, "val", values)
        self._log(pl_module, {key: value for key, value in values.items() if key.endswith("calibration_error")})
        self._log(pl_module, {f"val/{key}": value for key, value in values.get("val/gap", {}).items()})

    def _log_answers(self, module: LightningModule, stage: str, values: dict[str, Any]) -> None:
        if f"{stage}/beyond" in values:
            table = Contingency.of(values[f"{stage}/beyond"])
            self._log(module, {f"{stage}/on_teacher_right": table.on_teacher_right})
            self._log(module, {f"{stage}/on_teacher_wrong": table.on_teacher_wrong})
            self._log(module, {f"{stage}/agreement": values[f"{stage}/agreement"]})

    def _taken(self, stage: str) -> dict[str, Any]:
        """What the meters of a stage say, which begin anew."""
        meters = {name: meter for name, meter in self._meters.items() if name.startswith(f"{stage}/")}
        values = {name: meter.compute() for name, meter in meters.items() if meter.update_called}
        for meter in meters.values():
            meter.reset()
        return values

    def _log(self, module: LightningModule, values: dict[str, Any]) -> None:
        for key, value in values.items():
            number = float(value)
            if number == number:  # not NaN, on no rank: the counts are those of all ranks
                module.log(key, number, sync_dist=True)

    def draw(self) -> Figure:
        """See :class:`EpochPicture`."""
        figure, axes = panels(2, 3)
        figure.suptitle("Where the teacher is wrong, and whom the student follows")
        if self._confusion is not None:
            seen, right = self._confusion.sum(1), self._confusion.diagonal()
            rates = 100 * (1 - right / seen)
            worst = rates.nan_to_num(-1).argsort(descending=True)[: self.per_class].tolist()
            title = "Wrong-rate per class" if len(rates) <= self.per_class else f"The {self.per_class} worst classes"
            bars(
                axes[0],
                title,
                "teacher wrong on training views [%]",
                {self._classes[c]: rates[c].item() for c in worst},
            )
            wrong = int((seen - right).sum())
            pairs = {
                f"{self._classes[pair.label]} → {self._classes[pair.answer]}": 100 * pair.samples / wrong
                for pair in confused_pairs(self._confusion, min(self.per_class, 12))
            }
            bars(axes[1], "Commonest mistakes: label → answer", "of all mistakes on training views [%]", pairs, ORANGE)
        lines(
            axes[2],
            "Student's accuracy, by teacher's answer",
            "top-1 accuracy [%]",
            {
                "teacher right, training": self._styled("train/on_teacher_right", BLUE, 100, ls="--"),
                "teacher right, validation": self._styled("val/on_teacher_right", BLUE, 100),
                "teacher wrong, training": self._styled("train/on_teacher_wrong", ORANGE, 100, ls="--"),
                "teacher wrong, validation": self._styled("val/on_teacher_wrong", ORANGE, 100),
            },
        )
        lines(
            axes[3],
            "Distillation loss, before dynamic weighting",
            "loss of a training view",
            {
                "right part": self._styled("train/loss_right", BLUE),
                "rectified part": self._styled("train/loss_rectified", ORANGE),
            },
        )
        lines(
            axes[4],
            "Strategy",
            "share [%]",
            {
                "γ, weight of hard knowledge": self._styled("bias/gamma", GREY, 100),
                "teacher wrong, training views": self._styled("bias/wrong_rate", ORANGE, 100),
                "label not on top, of rectified": self._styled("bias/not_on_top", AMBER, 100),
            },
        )
        lines(
            axes[5],
            "Calibration error and agreement, validation",
            "share [%]",
            {
                "student's calibration error": self._styled("val/calibration_error", BLUE, 100),
                "teacher's calibration error": self._styled("val/teacher_calibration_error", GREY, 100, ls="--"),
                "same first class": self._styled("val/agreement", AMBER, 100),
            },
        )
        return figure

    def _styled(self, key: str, colour: str, scale: float = 1.0, ls: str = "-") -> tuple[list[int], list[float], Any]:
        epochs, values = self.curve(key)
        return epochs, [scale * value for value in values], {"color": colour, "linestyle": ls}


def _has_answers(outputs: Any) -> bool:
    return isinstance(outputs, Mapping) and "student_logits" in outputs and "teacher_logits" in outputs
