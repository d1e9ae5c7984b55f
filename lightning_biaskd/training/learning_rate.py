"""Scaling learning rates that are meant for another batch size."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_biaskd.errors import UserError


def scale_learning_rate(optimizer: Optimizer, trainer: Trainer, batch_size: int) -> None:
    """Scales learning rates linearly from the batch size they are meant for to that of the run, in place.

    Goyal et al., *Accurate, Large Minibatch SGD*, 2017, arXiv 1706.02677.

    Args:
        optimizer: its learning rates are scaled.
        trainer: the run's Trainer. Its data module gives the batch size per process.
        batch_size: images per step, over all processes and accumulated batches, for which the rates were chosen.

    Raises:
        UserError: there is no data module with a batch size, or ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise UserError(f"lr_batch_size={batch_size}: name the images per step that the learning rate is meant for")
    own = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if own is None:
        raise UserError("lr_batch_size needs to know the batch size: give a data module that has batch_size")
    size = own * trainer.world_size * trainer.accumulate_grad_batches
    for group in optimizer.param_groups:
        group["lr"] *= size / batch_size
    rank_zero_info(f"learning rates times {size / batch_size:g}, for {size} images a step, not {batch_size}")
