"""Trainers that run a network over data without training anything."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_biaskd.training.distillation import DistillationModule

QUIET: dict[str, Any] = {
    **{"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
    **{"limit_val_batches": 0, "num_sanity_val_steps": 0},
    **{"accumulate_grad_batches": 1, "gradient_clip_val": None},  # nothing is trained
}
"""Arguments of a Trainer that leaves no trace."""


class TeacherPass(LightningModule):
    """Base of modules that a Trainer fits as it would a student, but that learn nothing.

    So the teacher sees the same images in the same precision, on the same devices and processes, as in training.

    Args:
        module: whose teacher is run.
        num_classes: C, of the data; ``None`` if they don't say.
    """

    def __init__(self, module: DistillationModule, num_classes: int | None) -> None:
        super().__init__()
        self.teacher = module.teacher
        self.num_classes = num_classes
        self.anchor = nn.Parameter(torch.zeros(1))  # DDP refuses a module without parameters

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.anchor], lr=0.0)  # never stepped; without one Lightning would warn

    def training_step(self, *_: Any) -> None:
        """Does nothing."""

    def validation_step(self, *_: Any) -> None:
        """Does nothing; without it Lightning would warn."""
