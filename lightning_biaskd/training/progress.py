"""What changes from epoch to epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class EpochCallback(Callback):
    """Calls :meth:`on_epoch` before the first batch of every epoch.

    Lightning's ``on_train_epoch_start`` is left out in a run that goes on in the middle of an epoch; this is not.
    """

    _epoch = -1

    def on_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first batch that this process trains on in an epoch."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._epoch != trainer.current_epoch:
            self._epoch = trainer.current_epoch
            self.on_epoch(trainer, pl_module)
