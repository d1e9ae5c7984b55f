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
    """The baseline of :class:`BiasStrategy`: distils all samples equally, including the teacher's mistakes.

    Example:
        >>> from lightning_biaskd.distillers import KD
        >>> student, teacher = Outputs(torch.zeros(2, 2)), Outputs(torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
        >>> loss = Plain()(KD(temperature=1.0), student, teacher, torch.tensor([0, 1]))
        >>> loss.total, loss.wrong_rate
        (tensor(0.3278), tensor(0.5000))
    """

    def forward(self, distiller: Distiller, student: Outputs, teacher: Outputs, target: Tensor) -> BiasLoss:
        """Averages the method's losses.

        Args:
            distiller: any method.
            student: the student's outputs.
            teacher: the teacher's outputs.
            target: (B,) labels.

        Returns:
            The mean loss as ``total`` and ``right``; nothing is rectified.
        """
        losses = [weight * losses_on_joined_batch(term, student, teacher, target) for term, weight in distiller.terms()]
        total = torch.stack(losses).sum(0).mean()
        wrong = ~partition(teacher.logits, target)
        return BiasLoss(total, total.detach(), torch.zeros_like(total), wrong.float().mean())

    def rectified(self, term: Distiller, logits: Tensor, target: Tensor) -> None:
        """Returns ``None``: no method gets corrected logits."""

    def logged(self, loss: BiasLoss) -> dict[str, Tensor]:
        """The scalars that a training step logs."""
        return {"bias/wrong_rate": loss.wrong_rate}
