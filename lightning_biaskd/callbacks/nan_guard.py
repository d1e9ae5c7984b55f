"""Protects the weights from losses and gradients that are not finite."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lightning_biaskd.errors import UserError


class NaNGuard(Callback):
    """Stops a run or skips the step if the gradient is not finite, before the optimizer uses it.

    The error names the batch and says whether the loss or the gradient is not finite. With ``skip=True``, the callback
    skips the step instead: weights, momentum, running statistics of batch norms, memories (parameters without gradient)
    and the module's metrics stay as they were before the step, and ``train/skipped`` counts the skipped steps. Batches
    accumulated for the same step are skipped too. Under DDP, all ranks act if one of them sees the problem. In
    ``16-mixed`` precision, infinite gradients are normal because the scaler skips such steps, so the callback checks
    the loss only.

    On a GPU, every step waits for the device once. With ``skip=True``, every step also copies what a skipped step must
    restore. On the command line: ``--trainer.callbacks+=NaNGuard``.

    Args:
        skip: skip the step and continue.
        patience: number of consecutive steps that may be skipped; the next one stops the run.

    Raises:
        UserError: during training, the loss or the gradient is not finite and the step is not skipped.
    """

    steers_training = True

    def __init__(self, skip: bool = False, patience: int = 10) -> None:
        self.skip = skip
        self.patience = patience
        self._before: list[tuple[Tensor, Tensor]] = []
        self._counted: dict[int, dict[str, Any]] = {}
        self._skipped = self._in_a_row = 0
        self._loss: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.skip:
            fixed = [p for p in pl_module.parameters() if not p.requires_grad]
            self._before = [(tensor, tensor.detach().clone()) for tensor in (*pl_module.buffers(), *fixed)]
            self._counted = {id(metric): copy.deepcopy(metric.metric_state) for metric in _metrics(pl_module)}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._loss is not None
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        watched = [self._loss] if scaled else [self._loss, *torch._foreach_norm(gradients)]
        finite = bool(torch.stack([x.float().sum() for x in watched]).isfinite().all())
        if trainer.strategy.reduce_boolean_decision(finite):
            self._in_a_row = 0
            return
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"
        what = "the loss" if not bool(self._loss.isfinite()) else "the gradient"
        if not self.skip or self._in_a_row >= self.patience:
            raise UserError(
                f"{what} is not finite in {where}: lower the learning rate or clip gradients, or let NaNGuard(skip="
                "True) leave such steps out; the weights are those of the step before"
            )
        self._put_back(pl_module)
        if not scaled:
            for parameter in pl_module.parameters():
                parameter.grad = None
        self._skipped += 1
        self._in_a_row += 1
        rank_zero_warn(f"{what} is not finite in {where}: the step is left out")

    @torch.no_grad()
    def _put_back(self, pl_module: LightningModule) -> None:
        for tensor, before in self._before:
            tensor.copy_(before)
        for metric in _metrics(pl_module):
            if id(metric) not in self._counted:  # made in this step
                metric.reset()
            for name, value in self._counted.get(id(metric), {}).items():
                setattr(metric, name, value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.skip:
            pl_module.log("train/skipped", float(self._skipped))

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._skipped = state_dict["skipped"]


def _metrics(pl_module: LightningModule) -> list[Metric]:
    return [module for module in pl_module.modules() if isinstance(module, Metric)]
