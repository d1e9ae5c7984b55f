"""The first moments of a run that goes on from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_biaskd.distributed.ranks import rank, world_size
from lightning_biaskd.randomness.state import restore_random_state
from lightning_biaskd.training.loop_counters import Rest


class Resumption:
    """Brings a run to where its checkpoint was written, and does what the stopped run has left undone there.

    Args:
        trainer: of the run that goes on.
        checkpoint: as loaded.
        rest: what is left undone.
        batches: how many batches of the epoch are done; 0 between two epochs.
    """

    def __init__(self, trainer: Trainer, checkpoint: dict[str, Any], rest: Rest, batches: int) -> None:
        self.run: dict[str, Any] = checkpoint.get("run", {})
        self.batches = batches
        self._rest = rest
        self._random_states = checkpoint.get("random_states")
        self._gradients = checkpoint.get("gradients")
        self._metrics: dict[str, float] = checkpoint.get("metrics", {})
        self.max_steps = trainer.max_steps
        self._at_the_end = rest == "iteration" and checkpoint["global_step"] == trainer.max_steps

    def prepare(self, trainer: Trainer) -> None:
        """Called before training starts, once it is clear that the run may go on."""
        if self._at_the_end:
            trainer.fit_loop.epoch_loop.max_steps += 1  # or Lightning would leave out the end of the last iteration

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Called when training starts, with all states restored."""
        loop = trainer.fit_loop
        loop._restarting = False  # or a scheduler that follows a metric misses the end of this epoch
        self._restore_random_state()
        self._restore_gradients(module)
        if self.batches == 0:
            loop.epoch_loop.restarting = False
            self._end_epoch(trainer, module)
            stopped = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
            trainer.should_stop |= any(callback.wait_count >= callback.patience for callback in stopped)
        elif self._rest == "iteration":
            loop.epoch_loop.advance = self._advance_without_a_batch(trainer)  # type: ignore[method-assign]

    def _advance_without_a_batch(self, trainer: Trainer) -> Any:
        """The first iteration: its step was taken before the stop, and validation may follow."""

        def advance(data_fetcher: Any) -> None:
            loop = trainer.fit_loop.epoch_loop
            del loop.advance  # the class's own comes back
            loop.max_steps = self.max_steps

        return advance

    def _restore_random_state(self) -> None:
        if self._random_states is not None:
            restore_random_state(self._random_states)

    def _restore_gradients(self, module: LightningModule) -> None:
        if self._gradients is None or len(self._gradients) != world_size():
            return
        own = self._gradients[rank()]
        for name, parameter in module.named_parameters():
            if name in own:
                parameter.grad = own[name].to(parameter.device)

    def end(self, trainer: Trainer, module: LightningModule) -> None:
        """Called when the fit is over and nothing was left to train."""
        self._restore_random_state()
        self._end_epoch(trainer, module)

    def _end_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the checkpoints and steps the schedulers that the end of an epoch still owes."""
        if self._rest != "epoch_end" or not self._metrics:
            return
        values = {name: torch.tensor(value) for name, value in self._metrics.items()}
        trainer._logger_connector._callback_metrics.update(values)
        epoch: Any = trainer.fit_loop.epoch_progress.current
        epoch.completed = epoch.processed - 1  # so that it is the epoch that ends
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.on_train_epoch_end(trainer, module)
        trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        epoch.completed = epoch.processed
