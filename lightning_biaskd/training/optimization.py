"""The optimizer and the schedule of a module."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_biaskd.errors import UserError
from lightning_biaskd.training.learning_rate import scale_learning_rate
from lightning_biaskd.training.resumable import ResumableModule
from lightning_biaskd.training.schedules import fitted


class OptimizedModule(ResumableModule):
    """A module that builds its optimizer and schedule from what its constructor was given."""

    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    lr_interval: Literal["epoch", "step"]
    lr_batch_size: int | None

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
            if self.lr_batch_size is not None:
                scale_learning_rate(optimizer, self.trainer, self.lr_batch_size)
            scheduler: Any = self.lr_scheduler(optimizer) if self.lr_scheduler is not None else None
        except ValueError as error:
            raise UserError(f"the optimizer or its scheduler refuses its arguments: {error}") from error
        if any(not math.isfinite(rate) for rate in (float(group.get("lr", 0)) for group in optimizer.param_groups)):
            raise UserError("the learning rate is not a finite number: set the optimizer's lr")
        if scheduler is None:
            return optimizer
        scheduler = fitted(scheduler, self.trainer, self.lr_interval)
        schedule = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            if not hasattr(scheduler, "monitor"):  # which Lightning's subclass has
                raise UserError(
                    "ReduceLROnPlateau must know which metric it follows: use lightning.pytorch.cli.ReduceLROnPlateau "
                    "and set its monitor, for example to val/acc1 with mode max"
                )
            if self.lr_interval == "step":
                raise UserError("ReduceLROnPlateau follows the metrics of an epoch: set lr_interval to epoch")
            # a validation every second epoch gives a metric every second epoch
            schedule |= {"monitor": scheduler.monitor, "frequency": self.trainer.check_val_every_n_epoch or 1}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        try:
            super().lr_scheduler_step(scheduler, metric)
        except ValueError as error:  # OneCycleLR after its last step
            raise UserError(
                f"{type(scheduler).__name__}: {error}: give it as many steps as the run has: epochs, or with "
                "lr_interval 'step' batches times epochs"
            ) from error
