"""Plain distillation, as a strategy."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_biaskd.bias.loss import BiasLoss
from lightning_biaskd.bias.rows import row_losses, rows_of
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.distributed.ranks import world_size
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

    def forward(
        self,
        distiller: Distiller,
        student: Outputs,
        teacher: Outputs,
        target: Tensor,
        ignore_index: int | None = None,
    ) -> BiasLoss:
        """Averages the method's losses.

        Args:
            distiller: any method.
            student: the student's outputs.
            teacher: the teacher's outputs.
            target: (B,) or (B, …) labels.
            ignore_index: the label of samples that count nowhere; ``None`` if there is none.

        Returns:
            The mean loss as ``total`` and ``right``; nothing is rectified.
        """
        rows = rows_of(student, teacher, target, ignore_index)
        losses = [weight * row_losses(term, rows, None, rows.known, joined=True) for term, weight in distiller.terms()]
        loss = torch.stack(losses).sum(0)
        wrong = rows.split()[1]
        if rows.known is None:
            total, wrong_rate, known, unit = loss.mean(), wrong.float().mean(), None, None
        else:
            ranks = world_size() if self.training else 1
            counts = torch.stack([rows.known.sum(), wrong.sum()])
            if ranks > 1:
                dist.all_reduce(counts)
            unit = ranks / counts[0].clamp_min(1).to(loss.dtype)
            total = torch.where(rows.known, loss, 0).sum() * unit
            wrong_rate, known = counts[1] / counts[0].clamp_min(1), rows.known.view(rows.shape)
        return BiasLoss(total, total.detach(), torch.zeros_like(total), wrong_rate, None, known, unit)

    def rectified(self, term: Distiller, logits: Tensor, target: Tensor) -> None:
        """Returns ``None``: no method gets corrected logits."""

    def logged(self, loss: BiasLoss) -> dict[str, Tensor]:
        """The scalars that a training step logs."""
        return {"bias/wrong_rate": loss.wrong_rate}
