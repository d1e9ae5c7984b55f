"""Student, teacher and gap in the progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from lightning_biaskd.plotting import GREEN, SKY

_THEME = RichProgressBarTheme(
    description="bold", progress_bar=SKY, progress_bar_finished=GREEN, progress_bar_pulse=SKY,
    metrics="",
)  # fmt: skip
_NAMES: dict[str, tuple[str, Callable[[float], str]]] = {
    "train/loss_step": ("loss", lambda value: f"{value:.3f}"),
    "val/acc1": ("student", lambda value: f"{100 * value:.1f}%"),
    "val/teacher_acc1": ("teacher", lambda value: f"{100 * value:.1f}%"),
    "val/gap": ("gap", lambda value: f"{100 * value:+.1f}"),
}


class DistillationProgressBar(RichProgressBar):
    """Lightning's Rich progress bar, with the accuracies of student and teacher on validation images and their gap.

    It reads the device when there is something new to show, every ``log_every_n_steps`` and after a validation.
    Lightning's own does in every step, and each time waits for all that the device still has to do.

    Args:
        refresh_rate: updates per second; 0 shows nothing.
        leave: whether the bar of each epoch stays on the screen.
    """

    def __init__(self, refresh_rate: int = 10, leave: bool = False) -> None:
        super().__init__(refresh_rate, leave, _THEME)
        self._shown: dict[str, Any] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._shown and trainer.training and (not every or trainer.global_step % every):
            return self._shown
        self._shown = {}
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        for key, value in items.items():
            name, form = _NAMES.get(key, (key, None))
            if name == "student" and "val/teacher_acc1" not in trainer.callback_metrics:
                name = "accuracy"
            if key != "v_num":
                self._shown[name] = form(value) if form else value
        return self._shown
