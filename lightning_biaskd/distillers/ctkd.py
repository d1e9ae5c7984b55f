"""Curriculum temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError, check_positive
from lightning_biaskd.logits import kl_divergence
from lightning_biaskd.networks.outputs import Outputs


def reverse_gradient(x: Tensor, strength: float | Tensor = 1.0) -> Tensor:
    r"""The identity whose gradient is :math:`-\lambda`.

    Args:
        x: any shape.
        strength: λ.

    Returns:
        ``x``.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = reverse_gradient(x, 0.5)
        >>> y.backward()
        >>> y.item(), x.grad
        (3.0, tensor(-0.5000))
    """
    fixed = x.detach()
    return fixed - strength * (x - fixed)


def ctkd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor) -> Tensor:
    r""":math:`\tau^2\, \mathrm{KL}(\mathrm{softmax}(z^T/\tau) \,\|\, \mathrm{softmax}(z^S/\tau))` of each sample.

    This is :func:`~lightning_biaskd.distillers.kd_loss` with a tensor τ that gets gradient, also through its square.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: τ, a scalar.

    Returns:
        (B,)

    Example:
        >>> ctkd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor(1.0))
        tensor([0.3278])
    """
    return temperature.square() * kl_divergence(student_logits / temperature, teacher_logits / temperature)


class CTKD(Distiller):
    r"""Li, Li, Yang, Zhao, Song, Luo, Li, Yang, *Curriculum Temperature for Knowledge Distillation*.

    AAAI 2023, arXiv 2211.16231; the global temperature.

    .. math::
        \ell_i = \tau^2\, \mathrm{KL}(\mathrm{softmax}(z^T_i/\tau) \,\|\, \mathrm{softmax}(z^S_i/\tau)), \qquad
        \tau = \tau_0 + r\, \sigma(\theta)

    with one learned number θ. Its gradient is reversed, so that the temperature makes the student's task harder. It is
    also scaled by λ, which grows slowly from 0:
    :math:`\lambda_e = (1 - \cos(\pi \min(e, E)/E))/2` in epoch e, from 1.

    The defaults are those of the authors' code (zhengli97/CTKD): :math:`\tau_0` 1, r 20, θ 1 at first (so τ begins at
    15.6), E 10 epochs, cross-entropy at weight 0.1 and this loss at 0.9. θ is learned by the student's optimizer, with
    its weight decay, as there. A wrong teacher is rectified at the current τ, without gradient.

    Args:
        start: :math:`\tau_0`, the lowest temperature.
        span: r, how far above it the temperature can go.
        loops: E, epochs in which λ grows to 1. Before the first call of ``set_epoch``, λ is 1.

    Attributes:
        theta: parameter, θ.
        strength: buffer, λ.

    Raises:
        UserError: ``start`` or ``loops`` is not positive, or ``span`` is negative.

    Example:
        >>> distiller = CTKD()
        >>> distiller.temperature
        tensor(15.6212)
        >>> distiller.set_epoch(4)
        >>> distiller.strength
        tensor(0.5000)
    """

    strength: Tensor

    def __init__(self, start: float = 1.0, span: float = 20.0, loops: int = 10) -> None:
        check_positive(start=start)
        super().__init__(start)
        if not span >= 0 or loops < 1:
            raise UserError(f"span must not be negative and loops must be at least 1, got {span} and {loops}")
        self.start = start
        self.span = span
        self.loops = loops
        self.theta = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("strength", torch.tensor(1.0), persistent=False)

    @property
    def temperature(self) -> Tensor:  # type: ignore[override]  # learned, so a tensor
        """The current τ, without gradient."""
        return self._temperature(self.theta.detach())

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        temperature = self._temperature(reverse_gradient(self.theta, self.strength))
        return ctkd_loss(student.logits, teacher.logits, temperature)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.strength.fill_((1 - math.cos(math.pi * min((epoch + 1) / self.loops, 1.0))) / 2)

    def extra_repr(self) -> str:
        return f"start={self.start}, span={self.span}, loops={self.loops}"

    def _temperature(self, theta: Tensor) -> Tensor:
        return self.start + self.span * theta.sigmoid()
