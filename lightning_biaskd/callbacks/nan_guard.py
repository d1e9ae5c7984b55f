"""Stops at the first step that would ruin the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_biaskd.errors import UserError


class NaNGuard(Callback):
    """Stops a run, or leaves out the step, when the gradient is not finite, before the optimizer has taken it.

    The line names the batch and which of the losses are not finite. With ``skip=True`` the step is left out: weights,
    momentum and the running statistics of batch norms are those of before, and ``train/skipped`` counts such steps.
    Under DDP all ranks see the same gradient, so all do the same. In ``16-mixed`` precision infinite gradients are in
    order (the scaler leaves such steps out), so the loss is looked at instead.

    On a GPU every step then waits for the device once. On the command line: ``--trainer.callbacks+=NaNGuard``.

    Args:
        skip: leave the step out and go on.
        patience: how many steps in a row may be left out; the next one stops the run.

    Raises:
        UserError: in training, as above.
    """

    def __init__(self, skip: bool = False, patience: int = 10) -> None:
        self.skip = skip
        self.patience = patience
        self._buffers: list[Tensor] = []
        self._skipped = self._in_a_row = 0
        self._loss: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.skip:
            self._buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._loss is not None
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        watched = [self._loss] if scaled else [self._loss, *torch._foreach_norm(gradients)]
        if bool(torch.stack([x.float().sum() for x in watched]).isfinite().all()):
            self._in_a_row = 0
            return
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"
        what = "the loss" if not bool(self._loss.isfinite()) else "the gradient"
        if not self.skip or self._in_a_row >= self.patience:
            raise UserError(
                f"{what} is not finite in {where}: lower the learning rate or clip gradients, or let NaNGuard(skip="
                "True) leave such steps out; the weights are those of the step before"
            )
        for buffer, before in zip(pl_module.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        if not scaled:
            for parameter in pl_module.parameters():
                parameter.grad = None
        self._skipped += 1
        self._in_a_row += 1
        rank_zero_warn(f"{what} is not finite in {where}: the step is left out")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.skip:
            pl_module.log("train/skipped", float(self._skipped))

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._skipped = state_dict["skipped"]
