"""Weighted soft labels."""

import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_EPS = 1e-7


def wsld_loss(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    r"""The weighted soft-label loss of each sample; see :class:`WSLD`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) labels.
        temperature: τ.

    Returns:
        (B,)

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> wsld_loss(s, t, torch.tensor([0]), temperature=1.0)
        tensor([0.3958])
    """
    z_s, z_t = at_least_float32(student_logits), at_least_float32(teacher_logits)
    soft = F.cross_entropy(z_s / temperature, (z_t / temperature).softmax(1), reduction="none")
    hard_s = F.cross_entropy(z_s.detach(), target, reduction="none")
    hard_t = F.cross_entropy(z_t, target, reduction="none")
    return temperature**2 * -(-hard_s / (hard_t + _EPS)).expm1() * soft


class WSLD(Distiller):
    r"""Soft labels, weighted by how much the student still has to learn from them.

    Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, *Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance
    Tradeoff Perspective*, ICLR 2021, arXiv 2102.00650.

    .. math::
        \ell_i = \Big(1 - \exp\Big(-\frac{\mathrm{CE}(z^S_i, y)}{\mathrm{CE}(z^T_i, y)}\Big)\Big)
            \tau^2\, H\big(\mathrm{softmax}(z^T_i/\tau),\, \mathrm{softmax}(z^S_i/\tau)\big)

    The weight, taken at temperature 1 and without gradient, is small if the student is already surer of the label
    than the teacher. :math:`H` is a cross-entropy, not a divergence: the loss isn't zero at the teacher. The paper's α
    is ``kd_weight``: 2.25 with τ = 4 on CIFAR-100 (the configuration in cls_KD, by another group), 2.5 with τ = 2
    on ImageNet (the authors' code), with cross-entropy at 1.

    Args:
        temperature: τ.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__(temperature)
        self.soft_labels = temperature == 1  # at another one, it reads probabilities at two temperatures

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return wsld_loss(student.logits, teacher.logits, target, self.temperature)
