"""What a run must remember to go on exactly, beside what Lightning remembers."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule

from lightning_biaskd.networks.guarded_loading import GuardedLoading
from lightning_biaskd.randomness.state import random_states, restore_random_state
from lightning_biaskd.training.checkpoint import DurableCheckpointIO


class ResumableModule(GuardedLoading, LightningModule):
    """Goes on from a checkpoint with the random state of every process and the best metric so far.

    With data modules of this package, whose order and views are functions of seed, epoch and sample, a run that was
    killed then ends with the same bits as one that wasn't.
    """

    _random_states: list[dict[str, Any]] | None = None

    def setup(self, stage: str) -> None:
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = DurableCheckpointIO()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_states"] = random_states()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_states = checkpoint.get("random_states")
        for callback in [] if self._trainer is None else self._trainer.checkpoint_callbacks:
            # a run that goes on in a folder of its own still knows its best; Lightning would forget it
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if state is not None and "dirpath" in state:
                state["dirpath"] = getattr(callback, "dirpath", None)

    def on_train_start(self) -> None:
        if self._random_states is not None:
            restore_random_state(self._random_states)
            self._random_states = None
