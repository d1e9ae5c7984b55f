"""Knowledge distillation."""

from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.logits import kl_divergence
from lightning_biaskd.networks.outputs import Outputs


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r""":math:`\tau^2\, \mathrm{KL}(\mathrm{softmax}(z^T/\tau) \,\|\, \mathrm{softmax}(z^S/\tau))` of each sample.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: τ.

    Returns:
        (B,)

    Example:
        >>> import torch
        >>> kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=1.0)
        tensor([0.3278])
    """
    return temperature**2 * kl_divergence(student_logits / temperature, teacher_logits / temperature)


class KD(Distiller):
    r"""Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv 1503.02531.

    .. math:: \ell_i = \tau^2\, \mathrm{KL}(\mathrm{softmax}(z^T_i/\tau) \,\|\, \mathrm{softmax}(z^S_i/\tau))

    The factor :math:`\tau^2` keeps the size of the gradient when τ changes (section 2.1 there).

    Args:
        temperature: τ; 4 is the field's choice on CIFAR-100, 1 on ImageNet.
    """

    soft_labels = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__(temperature)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return kd_loss(student.logits, teacher.logits, self.temperature)
