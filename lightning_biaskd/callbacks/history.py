"""The logged metrics of every epoch, and pictures drawn from them."""

from __future__ import annotations

import io
import math
import sys
import time
from abc import abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_biaskd.errors import UserError
from lightning_biaskd.plotting import require_matplotlib
from lightning_biaskd.training.run_folder import run_folder, write_to

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SHARE = 1 / 20
"""Of the training time, at most so much goes into a picture that is drawn as often as time allows."""


class History(Callback):
    """Remembers what was logged in every epoch. A resumed run keeps the epochs before it. It logs no keys itself.

    Attributes:
        epochs: by 0-based epoch: the metrics by name. Epochs without a validation have no ``val/`` keys.
    """

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, float]] = {}
        self._running: int | None = None  # the epoch that is not noted yet
        self._trained = False

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """The epochs that have a metric, counted from 1, and its values."""
        known = [(epoch + 1, metrics[key]) for epoch, metrics in sorted(self.epochs.items()) if key in metrics]
        return [epoch for epoch, _ in known], [value for _, value in known]

    def note(self, trainer: Trainer, validation: bool) -> None:
        """Notes the metrics of the current epoch: those of validation, or all others."""
        metrics = {
            key: float(value)
            for key, value in trainer.callback_metrics.items()
            if key.startswith("val/") == validation  # the other part may still be that of the epoch before
        }
        epoch = trainer.current_epoch if self._running is None else self._running
        self.epochs.setdefault(epoch, {}).update(metrics)

    def on_epoch_noted(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called once an epoch is complete; on every rank."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._running, self._trained = trainer.current_epoch, False  # also where a run goes on within an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module)
        self._running, self._trained = trainer.current_epoch, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._running is not None and not trainer.sanity_checking:
            self.note(trainer, validation=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = True  # the module logs its metrics after this, and checkpoints are saved after that

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module)
        self._running = None

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._running is not None and self._trained:
            self.note(trainer, validation=False)
            self.on_epoch_noted(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._running is not None and self._trained:
            self.note(trainer, validation=False)
        checkpoint["callbacks"][self.state_key] = self.state_dict()  # Lightning has taken it before this hook

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": {epoch: dict(metrics) for epoch, metrics in self.epochs.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]


class EpochPicture(History):
    """A picture of the epochs so far.

    It is a PNG file in the run's folder, next to ``checkpoints``. Every logger that takes pictures gets it too
    (TensorBoard, Weights & Biases, MLflow), and a notebook shows it and keeps it up to date.

    The training waits while it is drawn, some tenths of a second. By default it is drawn after the first epoch, after
    the last one, and in between as often as that takes at most a twentieth of the time: after every epoch if an epoch
    takes ten seconds or more.

    Attributes:
        name: of the file, and of the picture in the loggers.

    Args:
        every_n_epochs: draw after every n epochs and after the last one; ``None`` decides by the time it takes.

    Raises:
        UserError: ``every_n_epochs`` is below 1; at the start of a fit, if matplotlib is missing.
    """

    name: str

    def __init__(self, every_n_epochs: int | None = None) -> None:
        super().__init__()
        if every_n_epochs is not None and every_n_epochs < 1:
            raise UserError(f"every_n_epochs is {every_n_epochs}: give 1 or more, or leave it out")
        self.every_n_epochs = every_n_epochs
        self._display: Any = None
        self._next = -math.inf  # not before this time
        self._drawn: int | None = None  # the last epoch in the picture

    @abstractmethod
    def draw(self) -> Figure:
        """The picture of :attr:`epochs`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            require_matplotlib()

    def on_epoch_noted(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._is_due():
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero and self.epochs and self._drawn != max(self.epochs):
            self._draw(trainer)

    def _is_due(self) -> bool:
        if self.every_n_epochs is None:
            return time.monotonic() >= self._next
        return (max(self.epochs) + 1) % self.every_n_epochs == 0

    def _draw(self, trainer: Trainer) -> None:
        begun = time.monotonic()
        self.publish(trainer, self.draw())
        ended = time.monotonic()
        self._next = ended + (1 / SHARE - 1) * (ended - begun)
        self._drawn = max(self.epochs)

    def publish(self, trainer: Trainer, figure: Figure) -> None:
        """Writes the file, and gives the picture to loggers and notebook."""
        image = io.BytesIO()
        figure.savefig(image, format="png")
        path = write_to(run_folder(trainer), f"{self.name}.png", image.getvalue())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(self.name, figure, trainer.global_step, close=False)
            elif isinstance(logger, WandbLogger):
                logger.log_image(self.name, [path])
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_artifact(logger.run_id, path)
        self._show(image.getvalue())

    def _show(self, image: bytes) -> None:
        if not in_notebook():
            return
        ipython: Any = import_module("IPython.display")
        picture = ipython.Image(data=image)
        if self._display is None:
            self._display = ipython.display(picture, display_id=True)
        else:
            self._display.update(picture)


def in_notebook() -> bool:
    """Whether pictures can be shown where this runs."""
    ipython = sys.modules.get("IPython")  # a notebook has imported it
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
