"""Accuracy and loss over training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_biaskd.callbacks.history import EpochPicture
from lightning_biaskd.plotting import BLUE, GREEN, GREY, ORANGE, lines, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CurvePlot(EpochPicture):
    """Draws accuracy and loss over the epochs: ``curves.png`` in the run's folder.

    Every logger that takes pictures gets it too, and a notebook shows it live. It works for teachers and baselines as
    well. It reads the keys below and logs none.

    ==================== =========================================
    key                  curve
    ==================== =========================================
    ``train/acc1``       student's accuracy on the training views
    ``val/acc1``         student's accuracy on validation images
    ``val/teacher_acc1`` teacher's accuracy on validation images
    ``train/loss``       what is minimised
    ``train/loss_ce``    cross-entropy
    ``train/loss_kd``    distillation term
    ==================== =========================================

    Cost on the quickstart, measured on one busy CPU core: 0.4 s each time it is drawn.

    Args:
        every_n_epochs: how often it is drawn, see :class:`EpochPicture`.

    Raises:
        UserError: at the start, if matplotlib is missing.
    """

    name = "curves"

    def draw(self) -> Figure:
        """Draws both panels."""
        figure, (accuracy, loss) = panels(1, 2)
        percent = {key: self._percent(key) for key in ("train/acc1", "val/acc1", "val/teacher_acc1")}
        lines(
            accuracy,
            "Accuracy",
            "top-1 accuracy [%]",
            {
                "student, training views" if percent["val/teacher_acc1"][0] else "training views": (
                    *percent["train/acc1"],
                    {"color": BLUE, "linestyle": "--"},
                ),
                "student, validation" if percent["val/teacher_acc1"][0] else "validation": (
                    *percent["val/acc1"],
                    {"color": BLUE},
                ),
                "teacher, validation": (*percent["val/teacher_acc1"], {"color": GREY, "marker": ""}),
            },
        )
        lines(
            loss,
            "Loss, training views",
            "mean of the epoch",
            {
                "minimised": (*self.curve("train/loss"), {"color": BLUE}),
                "cross-entropy": (*self.curve("train/loss_ce"), {"color": GREEN}),
                "distillation": (*self.curve("train/loss_kd"), {"color": ORANGE}),
            },
        )
        return figure

    def _percent(self, key: str) -> tuple[list[int], list[float]]:
        epochs, values = self.curve(key)
        return epochs, [100 * value for value in values]
