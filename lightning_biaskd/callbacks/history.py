"""The logged metrics of every epoch, and pictures drawn from them."""

from __future__ import annotations

import sys
from abc import abstractmethod
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_biaskd.plotting import require_matplotlib
from lightning_biaskd.training.run_folder import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History(Callback):
    """Remembers what was logged in every epoch; a resumed run has the epochs before it too.

    Attributes:
        epochs: by 0-based epoch: the metrics by name. Those of validation stand in the epochs that had one.
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
        checkpoint["callbacks"][self.state_key] = self.state_dict()  # which was asked for before this

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": {epoch: dict(metrics) for epoch, metrics in self.epochs.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]


class EpochPicture(History):
    """A picture drawn anew after every epoch.

    It is a PNG file in the run's folder, beside its ``checkpoints``; it goes to every logger that takes pictures
    (TensorBoard, Weights & Biases, MLflow); and in a notebook it is shown and kept up to date.

    Attributes:
        name: of the file, and of the picture in the loggers.

    Raises:
        UserError: at the start, if matplotlib is missing.
    """

    name: str

    def __init__(self) -> None:
        super().__init__()
        self._display: Any = None

    @abstractmethod
    def draw(self) -> Figure:
        """The picture of :attr:`epochs`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            require_matplotlib()

    def on_epoch_noted(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.publish(trainer, self.draw())

    def publish(self, trainer: Trainer, figure: Figure) -> None:
        """Writes the file, and hands the picture on."""
        path = run_folder(trainer) / f"{self.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(self.name, figure, trainer.global_step, close=False)
            elif isinstance(logger, WandbLogger):
                logger.log_image(self.name, [str(path)])
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_artifact(logger.run_id, str(path))
        self._show(path)

    def _show(self, path: Path) -> None:
        if not in_notebook():
            return
        ipython: Any = import_module("IPython.display")
        picture = ipython.Image(data=path.read_bytes())
        if self._display is None:
            self._display = ipython.display(picture, display_id=True)
        else:
            self._display.update(picture)


def in_notebook() -> bool:
    """Whether pictures can be shown where this runs."""
    ipython = sys.modules.get("IPython")  # a notebook has imported it, and nobody else should
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
