"""The teacher's bias and how the student responds to it, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_biaskd.bias.rows import known_rows
from lightning_biaskd.bias.strategy import BiasStrategy
from lightning_biaskd.callbacks.history import EpochPicture
from lightning_biaskd.metrics import (
    Agreement,
    BeyondTeacher,
    BiasRate,
    CalibrationError,
    ClassMeans,
    Contingency,
    DistributionGap,
    NotOnTop,
    confused_pairs,
)
from lightning_biaskd.metrics.class_names import class_names_of
from lightning_biaskd.metrics.meters import Meters
from lightning_biaskd.plotting import AMBER, BLUE, GREEN, GREY, ORANGE, bars, lines, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_biaskd.training.distillation import DistillationModule


class BiasMonitor(EpochPicture):
    """Shows where the teacher is wrong, what the strategy does there, and whether the student follows teacher or label.

    It counts the training views and validation images of a :class:`~lightning_biaskd.DistillationModule` on the device
    and logs once per epoch. The picture ``bias_monitor.png`` in the run's folder shows these numbers, γ and both parts
    of the loss; every logger that takes pictures gets it too (TensorBoard, Weights & Biases, MLflow).

    ================================= ==================================================================================
    key                               meaning
    ================================= ==================================================================================
    ``bias/wrong_rate/CLASS``         share of the class's training views that the teacher gets wrong; only with at most
                                      ``per_class`` classes
    ``bias/trust/CLASS``              share of its weight that the teacher keeps on the class's training views, after
                                      elimination, γ and trust; only with at most ``per_class`` classes
    ``bias/trust_lowest``             the same, of the class that gets the least of the teacher
    ``bias/trust_highest``            the same, of the class that gets the most
    ``bias/not_on_top``               share of wrong answers whose label did not end on top, corrected as far as
                                      ``label_trust`` lets them be; not with ``per_teacher``
    ``train/on_teacher_right``        student's accuracy on the training views that the teacher gets right, in train
                                      mode
    ``train/on_teacher_wrong``        student's accuracy on the training views that the teacher gets wrong
    ``train/agreement``               share of training views on which both networks rank the same class first
    ``val/on_teacher_right``          student's accuracy on the validation images that the teacher gets right
    ``val/on_teacher_wrong``          student's accuracy on the validation images that the teacher gets wrong
    ``val/agreement``                 share of validation images on which both networks rank the same class first
    ``val/kl``, ``val/js``            distance of the student's distribution from the teacher's, in nats
    ``val/calibration_error``         expected calibration error of the student
    ``val/teacher_calibration_error`` expected calibration error of the teacher
    ================================= ==================================================================================

    Rates are in [0, 1]. A rate without samples in an epoch is not logged. N processes count as one. A subclass of the
    module is watched too if its steps return what those of the base class return.

    Cost on the quickstart, measured on one busy CPU core: 1 ms a step, 20 ms an epoch, and 1.1 s each time the picture
    is drawn. The counts take 8 C² bytes up to 2,048 classes and some 50 MB at most beyond, see
    :class:`~lightning_biaskd.metrics.BiasRate`.

    Args:
        per_class: how many classes get a key of their own and a bar in the picture. With more classes there are no such
            keys, and the picture shows the classes with the highest rates.
        every_n_epochs: how often the picture is drawn, see :class:`EpochPicture`.

    Raises:
        UserError: at the start, if matplotlib is missing.
    """

    name = "bias_monitor"

    def __init__(self, per_class: int = 20, every_n_epochs: int | None = None) -> None:
        super().__init__(every_n_epochs)
        self.per_class = per_class
        self._meters = Meters()
        self._bias: dict[str, Tensor] = {}  # what BiasRate found in the last epoch
        self._trust: Tensor | None = None  # by class, in the last epoch
        self._classes: list[str] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, "teacher"):
            rank_zero_warn("BiasMonitor found no teacher to watch: this run distils nothing")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _has_answers(outputs):
            student, teacher, target, *trust = _rows(outputs, pl_module)
            self._count("train", student, teacher, target)
            self._meters.update("train/bias", lambda: BiasRate(teacher.shape[1]), teacher, target)
            if trust:
                self._meters.update("train/trust", lambda: ClassMeans(teacher.shape[1]), trust[0], target)
            self._count_rectified(cast("DistillationModule", pl_module), student, teacher, target)

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
        student, teacher, target, *_ = _rows(outputs, pl_module)
        self._count("val", student, teacher, target)
        self._meters.update("val/gap", DistributionGap, student, teacher)
        for key, logits in (("val/calibration_error", student), ("val/teacher_calibration_error", teacher)):
            self._meters.update(key, lambda: CalibrationError(teacher.shape[1]), logits, target)

    def _count(self, stage: str, student: Tensor, teacher: Tensor, target: Tensor) -> None:
        self._meters.update(f"{stage}/beyond", BeyondTeacher, student, teacher, target)
        self._meters.update(f"{stage}/agreement", Agreement, student, teacher)

    @torch.no_grad()
    def _count_rectified(self, module: DistillationModule, student: Tensor, teacher: Tensor, target: Tensor) -> None:
        if not isinstance(module.bias, BiasStrategy) or module.bias.per_teacher:
            return
        amount = module.bias.label_trust_in(student, teacher, target)
        for term, _ in module.distiller.terms():
            rectified = module.bias.rectified(term, teacher, target, amount)
            if rectified is not None:
                self._meters.update("train/not_on_top", NotOnTop, teacher, rectified, target)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        values = self._taken("train", pl_module)
        if "train/bias" in values:
            per_class = values["train/bias"]["per_class"]
            self._bias = {key: value.cpu() for key, value in values["train/bias"].items()}
            names = class_names_of(trainer.datamodule, len(per_class))  # type: ignore[attr-defined]
            self._classes = names or [str(number) for number in range(len(per_class))]
            if len(per_class) <= self.per_class:
                rates = zip(self._classes, per_class, strict=True)
                self._log(pl_module, {f"bias/wrong_rate/{name}": rate for name, rate in rates})
        if "train/trust" in values:
            self._trust = values["train/trust"].cpu()
            if len(self._trust) <= self.per_class:
                shares = zip(self._classes, self._trust, strict=True)
                self._log(pl_module, {f"bias/trust/{name}": share for name, share in shares})
            known = self._trust[~self._trust.isnan()]
            self._log(pl_module, {"bias/trust_lowest": known.min(), "bias/trust_highest": known.max()})
        if "train/not_on_top" in values:
            self._log(pl_module, {"bias/not_on_top": values["train/not_on_top"]})
        self._log_answers(pl_module, "train", values)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self._taken("val", pl_module)
        self._log_answers(pl_module, "val", values)
        self._log(pl_module, {key: value for key, value in values.items() if key.endswith("calibration_error")})
        self._log(pl_module, {f"val/{key}": value for key, value in values.get("val/gap", {}).items()})

    def _log_answers(self, module: LightningModule, stage: str, values: dict[str, Any]) -> None:
        if f"{stage}/beyond" in values:
            table = Contingency.of(values[f"{stage}/beyond"])
            self._log(module, {f"{stage}/on_teacher_right": table.on_teacher_right})
            self._log(module, {f"{stage}/on_teacher_wrong": table.on_teacher_wrong})
            self._log(module, {f"{stage}/agreement": values[f"{stage}/agreement"]})

    def _taken(self, stage: str, module: LightningModule) -> dict[str, Any]:
        """The values of a stage's meters, which are then reset."""
        values = self._meters.to(module.device).compute(f"{stage}/")
        self._meters.reset(f"{stage}/")
        return values

    def _log(self, module: LightningModule, values: dict[str, Any]) -> None:
        for key, value in values.items():
            number = float(value)
            if number == number:  # not NaN, on no rank: the counts are those of all ranks
                module.log(key, number, sync_dist=True)

    def draw(self) -> Figure:
        """Draws wrong-rates, confusions, accuracies, losses, γ, calibration and trust."""
        figure, axes = panels(2, 3 if self._trust is None else 4)
        figure.suptitle("Where the teacher is wrong, and what the student does there")
        if self._bias:
            rates = 100 * self._bias["per_class"].nan_to_num(-1)
            worst = rates.argsort(descending=True)[: self.per_class].tolist()
            title = "Wrong-rate per class" if len(rates) <= self.per_class else f"The {self.per_class} worst classes"
            bars(
                axes[0],
                title,
                "teacher wrong on training views [%]",
                {self._classes[c]: rates[c].item() for c in worst if rates[c] >= 0},
            )
            wrong = int((self._bias["seen"] - self._bias["right"]).sum())
            pairs = {
                f"{self._classes[pair.label]} → {self._classes[pair.answer]}": 100 * pair.samples / wrong
                for pair in confused_pairs(self._bias["confusion"], min(self.per_class, 12))
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
                "trust in the teacher": self._styled("bias/trust", BLUE, 100),
                "trust in labels that it contradicts": self._styled("bias/label_trust", BLUE, 100, ls="--"),
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
        if self._trust is not None:
            shares = 100 * self._trust.nan_to_num(-1)
            least = [c for c in shares.argsort().tolist() if shares[c] >= 0][: self.per_class]
            title = "Teacher's share per class" if len(shares) <= self.per_class else "Classes with the least teacher"
            shown = {self._classes[c]: shares[c].item() for c in least}
            bars(axes[6], title, "of the teacher's weight, last epoch [%]", shown, GREEN)
            lines(
                axes[7],
                "Teacher's share, by class",
                "of the teacher's weight [%]",
                {
                    "class with the most": self._styled("bias/trust_highest", GREEN, 100),
                    "class with the least": self._styled("bias/trust_lowest", ORANGE, 100),
                },
            )
        return figure

    def _styled(self, key: str, colour: str, scale: float = 1.0, ls: str = "-") -> tuple[list[int], list[float], Any]:
        epochs, values = self.curve(key)
        return epochs, [scale * value for value in values], {"color": colour, "linestyle": ls}


def _rows(outputs: Any, module: LightningModule) -> list[Tensor]:
    """Logits of student and teacher, labels and, in training, trust; of maps for each pixel that has a label."""
    trust = [outputs["trust"]] if "trust" in outputs else []
    ignored = getattr(module, "ignore_index", None)
    return known_rows(outputs["student_logits"], outputs["teacher_logits"], outputs["target"], ignored, *trust)


def _has_answers(outputs: Any) -> bool:
    return isinstance(outputs, Mapping) and "student_logits" in outputs and "teacher_logits" in outputs
