"""Dynamic learning: moves γ with training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_biaskd.bias import BiasStrategy, constant, cosine
from lightning_biaskd.errors import UserError
from lightning_biaskd.training.checks import check_steady_steps
from lightning_biaskd.training.progress import EpochCallback


class DynamicWeights(EpochCallback):
    r"""Sets γ of every :class:`~lightning_biaskd.bias.BiasStrategy` in the module from training progress t.

    γ is a pure function of progress: it is the same on every rank and needs no state, so a resumed run goes on exactly.

    * ``interval="epoch"`` (paper): at the start of epoch e of E, :math:`t = e / E`.
    * ``interval="step"``: before optimizer step s of S, :math:`t = s / S`.

    A run bounded by ``max_steps`` counts steps; ``interval="epoch"`` then takes those before the epoch's first one, so
    that a run that goes on in the middle of an epoch has the same γ. With both bounds, t is that of whichever is
    nearer. The module logs γ as ``bias/gamma``.

    Args:
        schedule: γ(t), from [0, 1] to [0, 1]: any of ``lightning_biaskd.bias`` (``cosine``, ``linear``, ``step``,
            ``constant``, ``reversed_cosine``) or any other function.
        interval: ``"epoch"`` or ``"step"``.

    Raises:
        UserError: the run's end isn't known in epochs or steps (``max_epochs`` or ``max_steps``; ``max_time`` alone
            would depend on the machine), there are two of these callbacks, or γ leaves [0, 1].
    """

    steers_training = True

    def __init__(
        self, schedule: Callable[[float], float] = cosine, interval: Literal["epoch", "step"] = "epoch"
    ) -> None:
        if interval not in ("epoch", "step"):
            raise UserError(f"unknown interval {interval!r}: choose epoch or step")
        self.schedule = schedule
        self.interval = interval

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(callback, DynamicWeights) for callback in callbacks) > 1:
            raise UserError("the Trainer has two DynamicWeights callbacks, and the later would overrule: remove one")
        if self.schedule is not constant and any(isinstance(callback, Timer) for callback in callbacks):
            raise UserError(
                "γ can't follow max_time, which ends training at another step on each machine: bound the run by "
                "max_epochs or max_steps, or fix γ by DynamicWeights(constant)"
            )
        check_steady_steps(trainer, self.interval)
        self._progress(trainer)
        strategies = [module for module in pl_module.modules() if isinstance(module, BiasStrategy)]
        if not strategies:
            rank_zero_warn("DynamicWeights found no BiasStrategy to schedule: this run distils plainly")
        elif not any(strategy.uses_gamma for strategy in strategies):
            rank_zero_warn("DynamicWeights has no effect, as balance='equal' does not use γ: set balance to ramp")

    def on_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval == "epoch":
            self._set(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.interval == "step":
            self._set(trainer, pl_module)

    def _set(self, trainer: Trainer, pl_module: LightningModule) -> None:
        t = self._progress(trainer)
        gamma = self.schedule(t)
        if not 0 <= gamma <= 1:
            raise UserError(f"the schedule gives γ = {gamma} at progress {t:.3f}: it must stay in [0, 1]")
        for module in pl_module.modules():
            if isinstance(module, BiasStrategy):
                module.gamma.fill_(gamma)

    def _progress(self, trainer: Trainer) -> float:
        """Share of training done, in [0, 1]."""
        epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
        if trainer.max_steps < 0 and epochs < 0:
            raise UserError("DynamicWeights must know when training ends: set max_epochs or max_steps of the Trainer")
        if self.interval == "epoch":
            by_epoch = trainer.current_epoch / epochs if epochs > 0 else 0.0
            by_step = _steps_before_epoch(trainer) / trainer.max_steps if trainer.max_steps > 0 else 0.0
            return min(max(by_epoch, by_step), 1.0)
        total = trainer.estimated_stepping_batches
        if total < 1 or math.isinf(total):
            raise UserError("the training data have no length, so steps can't be counted: set max_steps of the Trainer")
        return min(trainer.global_step / total, 1.0)


def _steps_before_epoch(trainer: Trainer) -> int:
    """Optimizer steps of the epochs before this one, from wherever in it the run goes on."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return int(trainer.global_step - batches // trainer.accumulate_grad_batches)
