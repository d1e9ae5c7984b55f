"""How much of the teacher each class would get."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_biaskd.bias.partition import partition
from lightning_biaskd.bias.rows import known_rows
from lightning_biaskd.bias.strategy import BiasStrategy
from lightning_biaskd.metrics import BiasRate, ClassMeans
from lightning_biaskd.metrics.meters import Meters
from lightning_biaskd.networks.named_inputs import Input
from lightning_biaskd.networks.outputs import resized
from lightning_biaskd.networks.trace import evaluating
from lightning_biaskd.training.distillation import DistillationModule


class ClassTrust(nn.Module):
    """Mean share of its weight that a strategy leaves the teacher on the views of each class, when γ = 1.

    The student is as it is. Running accuracies are those of all views.

    Args:
        module: whose strategy has trust.
        meters: count the shares.
    """

    def __init__(self, module: DistillationModule, meters: Meters) -> None:
        super().__init__()
        self.distillation = module.distillation
        self.meters = meters
        self.bias = copy.deepcopy(cast("BiasStrategy", module.bias))
        self.bias.gamma.fill_(1.0)

    def count(self, image: Input, own: Tensor, teacher: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            image: (B, …), or named tensors.
            own: (B,) bool, the images that count.
            teacher: logits (n, C, …) of these images.
            target: (n, …) labels of these images.
        """
        with evaluating(self.distillation.student):
            student = resized(self.distillation.outputs_of(image).logits[own], target.shape[1:])
        student, teacher, target = known_rows(student, teacher, target, self.distillation.ignore_index)
        classes = teacher.shape[1]
        if self.bias.running is None:
            bounds = [self.bias.trust_in(student, teacher, target)]
        else:  # shares are linear in trust, and all views must be counted before trust is known
            bounds = [torch.zeros_like(target, dtype=torch.float), None]
            self.meters.update("student", lambda: BiasRate(classes), student, target)
        for number, trust in enumerate(bounds):
            shares = self.bias.shares(self.distillation.distiller, partition(teacher, target), trust)
            self.meters.update(f"trust {number}", lambda: ClassMeans(classes), shares, target)

    def of_classes(self, values: dict[str, Any]) -> Tensor:
        """The shares (C,), NaN for a class not seen.

        Args:
            values: of the meters, among them the teacher's ``"bias"``.
        """
        least: Tensor = values["trust 0"]
        running = self.bias.running
        if running is None:
            return least
        counts = torch.stack([values["bias"]["seen"], values["bias"]["right"], values["student"]["right"]]).float()
        running.counts = counts if running.per_class else counts.sum(1, keepdim=True)
        trust: Tensor = running(torch.arange(len(least), device=least.device))
        most: Tensor = values["trust 1"]
        return least + trust * (most - least)
