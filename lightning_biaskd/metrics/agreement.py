"""How alike the answers of student and teacher are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from lightning_biaskd.logits import kl_divergence
from lightning_biaskd.networks.outputs import at_least_float32


class Agreement(Metric):
    """Share of samples to which student and teacher give the same first class, right or wrong.

    Shape of ``update(student_logits, teacher_logits)``: (B, C) each.

    Example:
        >>> metric = Agreement()
        >>> metric.update(torch.eye(4), torch.eye(4)[[0, 1, 2, 0]])
        >>> metric.compute()
        tensor(0.7500)
    """

    full_state_update = False
    same: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("same", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, student_logits: Tensor, teacher_logits: Tensor) -> None:
        """Adds a batch."""
        self.same += (student_logits.argmax(1) == teacher_logits.argmax(1)).sum()
        self.seen += len(student_logits)

    def compute(self) -> Tensor:
        """The share, in [0, 1]."""
        return self.same / self.seen


class DistributionGap(Metric):
    r"""How far the student's distribution is from the teacher's, mean over the samples, in nats.

    .. math:: \mathrm{KL} = \mathrm{KL}(p^T \,\|\, p^S), \qquad
        \mathrm{JS} = \tfrac12 \mathrm{KL}(p^T \,\|\, m) + \tfrac12 \mathrm{KL}(p^S \,\|\, m), \quad
        m = \tfrac12 (p^T + p^S)

    KL has no bound; JS is at most :math:`\ln 2 = 0.693`. Shape of ``update(student_logits, teacher_logits)``: (B, C)
    each. ``compute`` returns a dict with ``kl`` and ``js``.

    Args:
        temperature: τ of both softmaxes.

    Example:
        >>> metric = DistributionGap()
        >>> metric.update(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'kl': 0.3278, 'js': 0.0895}
    """

    full_state_update = False
    sums: Tensor
    seen: Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, student_logits: Tensor, teacher_logits: Tensor) -> None:
        """Adds a batch."""
        student, teacher = (
            F.log_softmax(at_least_float32(logits) / self.temperature, dim=1)
            for logits in (student_logits, teacher_logits)
        )
        middle = torch.logaddexp(student, teacher) - math.log(2)  # log-probabilities are logits of themselves
        js = (kl_divergence(middle, teacher) + kl_divergence(middle, student)) / 2
        self.sums += torch.stack([kl_divergence(student, teacher).sum(), js.sum()]).float()
        self.seen += len(student)

    def compute(self) -> dict[str, Tensor]:
        """Both means."""
        return dict(zip(("kl", "js"), self.sums / self.seen, strict=True))
