"""How much of the teacher each class would get."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_biaskd.bias.partition import partition
from lightning_biaskd.bias.running_trust import RunningTrust
from lightning_biaskd.bias.strategy import BiasStrategy
from lightning_biaskd.distillers import KD
from lightning_biaskd.networks.outputs import Outputs


class ClassTrust(Metric):
    """Mean share of its weight that a strategy leaves the teacher on the views of each class, when γ = 1.

    Shape of ``update(student_logits, teacher_logits, target)``: (B, C), (B, C), (B,). ``compute`` returns (C,), NaN for
    a class not seen. Running accuracies are those of all views.

    Args:
        bias: a strategy with trust.
        num_classes: C, the number of classes.
    """

    full_state_update = False
    tally: Tensor
    total: Tensor

    def __init__(self, bias: BiasStrategy, num_classes: int) -> None:
        super().__init__()
        self.bias = copy.deepcopy(bias).eval()
        self.bias.gamma.fill_(1.0)
        self.counter = RunningTrust(per_class=True)
        self.add_state("tally", torch.zeros(3, num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        right = partition(teacher, target)
        self.tally += self.counter.tally(right, partition(student, target), target, len(self.total))
        if self.bias.running is None:
            shares = self.bias(KD(), Outputs(student), Outputs(teacher), target).trust
            self.total.index_add_(0, target, shares.to(self.total))

    def compute(self) -> Tensor:
        """The shares, in [0, 1]."""
        seen, right, _ = self.tally.unbind()
        if self.bias.running is None:
            return torch.as_tensor(self.total / seen)
        running = RunningTrust(self.bias.running.per_class, self.bias.running.width)
        running.counts = self.tally.float() if running.per_class else self.tally.sum(1, keepdim=True).float()
        eased = 0 if self.bias.balance == "complement" else 1  # the weight of right answers when γ = 1
        used = 0 if self.bias.mode == "drop" else 1
        kept = (eased * right + used * (seen - right)) / seen
        trust: Tensor = running(torch.arange(len(seen), device=seen.device))
        return trust * kept
