"""The progress of a run: one line that moves in a terminal and in a notebook, one line per epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from rich import get_console

from lightning_biaskd.callbacks.progress_line import ProgressLine, duration, fitting, opened

_NAMES: dict[str, tuple[str, Callable[[float], str]]] = {
    "train/loss_step": ("loss", lambda value: f"{value:.3f}"),
    "val/acc1": ("student", lambda value: f"{100 * value:.1f}%"),
    "val/teacher_acc1": ("teacher", lambda value: f"{100 * value:.1f}%"),
    "val/gap": ("gap", lambda value: f"{100 * value:+.1f}"),
}


class DistillationProgressBar(ProgressBar):
    """Shows the loss, the validation accuracies of student and teacher, their gap, and the time left of the whole run.

    A terminal and a notebook have one line that is kept up to date and never wraps: a narrow terminal shows fewer
    metrics. Where the output goes into a file or a pipe, such as the log of a SLURM job, each epoch is one printed
    line. A notebook needs no widgets for it.

    The device is read when there is something new to show, every ``log_every_n_steps`` and after a validation.
    Otherwise the training never waits for the bar.

    =========== ======================================================================
    shown       logged key
    =========== ======================================================================
    ``loss``    ``train/loss_step``; in the line of an epoch ``train/loss``
    ``student`` ``val/acc1``; it is called ``accuracy`` where there is no teacher
    ``teacher`` ``val/teacher_acc1``
    ``gap``     ``val/gap``
    others      every key that is logged with ``prog_bar=True``, under its own name
    =========== ======================================================================

    Args:
        refresh_rate: updates per second; 0 shows nothing.
        leave: print the line of each epoch in a terminal or a notebook too.
    """

    def __init__(self, refresh_rate: int = 10, leave: bool = False) -> None:
        super().__init__()
        self.refresh_rate = refresh_rate
        self.leave = leave
        self._enabled = True
        self._shown: dict[str, Any] = {}
        self._epoch: int | None = None  # the epoch that has no line yet
        self._clock = _Clock()
        self._line: ProgressLine | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown."""
        return self._enabled and self.refresh_rate > 0

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the line."""
        if self.is_enabled:
            get_console().print(*args, **kwargs)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._shown and trainer.training and (not every or trainer.global_step % every):
            return self._shown
        self._shown = {}
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        for key, value in metrics.items():
            name, form = _NAMES.get(key, (key, lambda value: f"{value:.3f}"))
            if name == "student" and "val/teacher_acc1" not in trainer.callback_metrics:
                name = "accuracy"
            if key != "v_num":
                self._shown[name] = value if isinstance(value, str) else form(float(value))
        return self._shown

    def _show(self, what: str, done: int, total: float, left: float | None = None) -> None:
        if self.is_enabled:
            self._line = self._line or opened(self.refresh_rate)
            times = [f"{duration(left)} left"] if left is not None else []
            self._line.show(what, done, total, times + _words(self._shown))

    def _close(self, says: str | None = None) -> None:
        if self._line is not None:
            self._line.close(says)
            self._line = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown, self._epoch, self._clock = {}, None, _Clock()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch is not None and self.is_enabled and self._line is not None:
            spent, left = self._clock.lap(), self._clock.left(trainer, 0.0)
            if self.leave or not self._line.moves:
                times = [f"{duration(spent)} an epoch", *([f"{duration(left)} left"] if left is not None else [])]
                print(self._epoch_line(trainer, times), flush=True)
        left = self._clock.left(trainer, 0.0)
        self._show(_epoch(trainer, trainer.current_epoch), 0, self.total_train_batches, left)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.get_metrics(trainer, pl_module)
        self._epoch = trainer.current_epoch
        done, total = batch_idx + 1, self.total_train_batches
        self._show(_epoch(trainer, self._epoch), done, total, self._clock.left(trainer, done / total if total else 1.0))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.get_metrics(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch is not None:
            self._close(self._epoch_line(trainer, [f"{duration(self._clock.spent())} in all"]))

    def _epoch_line(self, trainer: Trainer, times: list[str]) -> str:
        """The line of the epoch that is over; its last metrics are logged after ``on_train_epoch_end``."""
        loss = trainer.callback_metrics.get("train/loss")
        others = {name: text for name, text in self._shown.items() if name != "loss" or loss is None}
        first = {} if loss is None else {"loss": f"{float(loss):.3f}"}
        return fitting(_epoch(trainer, self._epoch or 0), _words({**first, **others}), times)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if not trainer.sanity_checking:
            self._show_batch("Validation", trainer.num_val_batches, *args, **kwargs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self._show_batch("Test", trainer.num_test_batches, *args, **kwargs)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self._show_batch("Prediction", trainer.num_predict_batches, *args, **kwargs)

    def _show_batch(
        self, what: str, totals: list[int | float], outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._show(what, batch_idx + 1, totals[dataloader_idx])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.get_metrics(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._shown = {}
        if not trainer.is_global_zero:
            self.disable()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close("")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_line": None}  # it holds a thread


class _Clock:
    """How long a run has taken, and how long it will go on if it goes on as so far."""

    def __init__(self) -> None:
        self._since = self._lap = time.monotonic()
        self._before: float | None = None

    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._since

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        seconds, self._lap = now - self._lap, now
        return seconds

    def left(self, trainer: Trainer, of_epoch: float) -> float | None:
        """Seconds, ``None`` where nothing is known.

        Args:
            trainer: bounds the run by epochs, steps or time; the nearest end counts.
            of_epoch: share of the current epoch that is done.
        """
        share = _share(trainer, of_epoch)
        if self._before is None:
            self._before = share  # more than 0 in a run that was resumed
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        ends = [seconds for timer in timers if (seconds := timer.time_remaining()) is not None]
        if share > self._before:
            ends.append(self.spent() / (share - self._before) * max(1 - share, 0.0))
        return max(min(ends), 0.0) if ends else None


def _share(trainer: Trainer, of_epoch: float) -> float:
    """The share of a run that is done."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    by_epoch = (trainer.current_epoch + of_epoch) / epochs if epochs > 0 else 0.0
    return max(by_epoch, trainer.global_step / steps if steps > 0 else 0.0)


def _epoch(trainer: Trainer, epoch: int) -> str:
    """The name of an epoch, counted from 1."""
    epochs = trainer.max_epochs or -1
    return f"Epoch {epoch + 1}/{epochs}" if epochs > 0 else f"Epoch {epoch + 1}"


def _words(metrics: dict[str, Any]) -> list[str]:
    return [f"{name} {text}" for name, text in metrics.items()]
