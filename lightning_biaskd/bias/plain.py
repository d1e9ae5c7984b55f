"""Plain distillation, as a strategy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_biaskd.bias.joined_batch import losses_on_joined_batch
from lightning_biaskd.bias.partition import partition
from lightning_biaskd.bias.strategy import BiasLoss
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.networks.outputs import Outputs


class Plain(nn.Module):
    """Distils every sample alike, with the teacher's mistakes; the baseline of :class:`BiasStrategy`."""

    def forward(self, distiller: Distiller, student: Outputs, teacher: Outputs, target: Tensor) -> BiasLoss:
        """The mean of the method's losses; the arguments are those of :class:`BiasStrategy`."""
        losses = [weight * losses_on_joined_batch(term, student, teacher, target) for term, weight in distiller.terms()]
        total = torch.stack(losses).sum(0).mean()
        wrong = ~partition(teacher.logits, target)
        return BiasLoss(total, total.detach(), torch.zeros_like(total), wrong.float().mean())

    def logged(self, loss: BiasLoss) -> dict[str, Tensor]:
        """The scalars that a training step logs."""
        return {"bias/wrong_rate": loss.wrong_rate}
