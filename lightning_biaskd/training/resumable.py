"""What a run must remember to go on exactly, in addition to what Lightning remembers."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.guarded_loading import GuardedLoading
from lightning_biaskd.randomness.state import of_all_processes, own_random_state, random_states
from lightning_biaskd.training.checkpoint import make_durable
from lightning_biaskd.training.full_disk import survive_full_disk
from lightning_biaskd.training.loop_counters import normalize_counters, pending_work
from lightning_biaskd.training.resumption import Resumption
from lightning_biaskd.training.run_record import compare, record
from lightning_biaskd.training.stopping import StopRequest


class ResumableModule(GuardedLoading, LightningModule):
    """A module whose run goes on from any of its checkpoints as if it had never been stopped.

    A checkpoint also holds the random state of every process, gradients that are being accumulated, and a record of
    the run. With the data modules of this package, whose order and views are functions of seed, epoch and sample, a run
    that was killed ends with the same bits, validations and scheduler steps as one that was not.
    """

    _resumption: Resumption | None = None
    _stop_request: StopRequest | None = None
    _before_validation: tuple[dict[str, Any], dict[str, Any]] | None = None

    def setup(self, stage: str) -> None:
        make_durable(self.trainer.strategy)
        if stage == TrainerFn.FITTING:
            self._resumption = self._before_validation = None  # of an earlier run that didn't get far
            self._stop_request = StopRequest(self.trainer)
            survive_full_disk(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainer = self.trainer
        fit_loop = checkpoint["loops"]["fit_loop"]
        in_validation = trainer.validating and trainer.state.fn == TrainerFn.FITTING
        checkpoint["rest"] = pending_work(fit_loop, in_validation)
        checkpoint["run"] = record(trainer, self)
        checkpoint["random_states"] = random_states()
        if in_validation and self._before_validation is not None:
            # a run that goes on from here validates again, so it needs what validation has changed
            own, callbacks = self._before_validation
            checkpoint["random_states"] = of_all_processes(own)
            checkpoint["callbacks"] = callbacks
        if _accumulating(trainer, fit_loop):
            own_gradients = {n: p.grad.cpu() for n, p in self.named_parameters() if p.grad is not None}
            checkpoint["gradients"] = of_all_processes(own_gradients)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None:
            return
        for callback in self._trainer.checkpoint_callbacks:
            # a run that goes on in another folder still knows its best; Lightning would forget it
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if state is not None and "dirpath" in state:
                state["dirpath"] = getattr(callback, "dirpath", None)
        if self._trainer.state.fn == TrainerFn.FITTING:
            self._resume(self._trainer, checkpoint)

    def _resume(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        if "optimizer_states" not in checkpoint:
            raise UserError(
                "the checkpoint holds weights without the optimizer's state (save_weights_only), so no run can go on "
                "from it: take another, or begin a new run with it as the initial weights"
            )
        fit_loop = checkpoint["loops"]["fit_loop"]
        rest = checkpoint.get("rest") or pending_work(fit_loop, validating=False)
        batches = normalize_counters(fit_loop)
        loaders = fit_loop["state_dict"].get("combined_loader", [])
        for state in (checkpoint.get(type(getattr(trainer, "datamodule", None)).__qualname__), *loaders):
            if isinstance(state, dict) and "batches" in state:  # a step that was broken off, or limit_train_batches
                state["batches"] = batches or state.get("of", state["batches"])
        self._drop_average(trainer, checkpoint)
        self._resumption = Resumption(trainer, checkpoint, rest, batches)

    def _drop_average(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averages = [isinstance(c, WeightAveraging) or getattr(c, "averages_weights", False) for c in callbacks]
        if "current_model_state" in checkpoint and not any(averages):
            checkpoint["state_dict"] = checkpoint["current_model_state"]
            rank_zero_warn(
                "the checkpoint's run averaged its weights (EMA) and this one doesn't: it goes on from the trained "
                "weights, not from their average; add the callback to keep the average"
            )

    def on_fit_start(self) -> None:
        if self._resumption is not None:
            now = {**record(self.trainer, self), "max_steps": self._resumption.max_steps}
            compare(self._resumption.run, now, within_epoch=self._resumption.batches > 0)
            self._resumption.prepare(self.trainer)

    def on_train_start(self) -> None:
        if self._resumption is not None:
            self._resumption.begin(self.trainer, self)
            self._resumption = None
            self._note_before_validation()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        loop = self.trainer.fit_loop
        if loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._note_before_validation()
        if self._stop_request is not None:
            self._stop_request.obey(self.trainer)

    def _note_before_validation(self) -> None:
        states = {c.state_key: c.state_dict() for c in self.trainer.callbacks}  # type: ignore[attr-defined]
        states = {key: copy.deepcopy(state) for key, state in states.items() if state}
        self._before_validation = (own_random_state(), states)

    def on_train_epoch_start(self) -> None:
        if self._stop_request is not None:
            self._stop_request.obey(self.trainer)

    def on_fit_end(self) -> None:
        if self._resumption is not None:  # there was nothing left to train
            self._resumption.end(self.trainer, self)
            self._resumption = None


def _accumulating(trainer: Trainer, fit_loop: dict[str, Any]) -> bool:
    """Whether an optimizer step is still to come for batches that were trained on."""
    batch = fit_loop["epoch_loop.batch_progress"]
    done = batch["current"]["processed"]
    return bool(done % trainer.accumulate_grad_batches) and not batch["is_last_batch"]
