"""Distillation of normalized logits."""

import torch
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.logits import kl_divergence
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def norm_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""The loss of each sample, each at its own temperature; see :class:`NormKD`.

    Args:
        student_logits: (B, C), C at least 2.
        teacher_logits: (B, C).
        temperature: :math:`T_\mathrm{norm}`, in standard deviations of a row's logits.

    Returns:
        (B,)

    Example:
        >>> norm_kd_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[4.0, 0.0, 2.0]]), temperature=2.0)
        tensor([0.9670])
    """
    z_s, z_t = at_least_float32(student_logits), at_least_float32(teacher_logits)
    # the authors' code has no floor; without one a row of equal logits is 0 / 0
    floor = torch.finfo(z_s.dtype).eps
    tau_s = temperature * z_s.std(1, keepdim=True).clamp_min(floor)
    tau_t = temperature * z_t.std(1, keepdim=True).clamp_min(floor)
    return tau_t.squeeze(1).square() * kl_divergence(z_s / tau_s, z_t / tau_t)


class NormKD(Distiller):
    r"""Chi et al., *NormKD: Normalized Logits for Knowledge Distillation*, 2023, arXiv 2308.00520.

    .. math::
        \ell_i = (\tau^T_i)^2\, \mathrm{KL}\big(\mathrm{softmax}(z^T_i/\tau^T_i) \,\|\,
            \mathrm{softmax}(z^S_i/\tau^S_i)\big), \qquad \tau_i = T_\mathrm{norm}\, \sigma(z_i)

    with the unbiased standard deviation :math:`\sigma` of a row, through which the student's gradient flows, as in the
    authors' code (gizi1/NormKD). The default is theirs for CIFAR-100, with weight 0.9 and cross-entropy at 0.1; on
    ImageNet it is 1, with 0.5 and 0.5.

    :class:`~lightning_biaskd.bias.BiasStrategy` rectifies at one temperature, :math:`T_\mathrm{norm}`, and not at
    each sample's own. For ``swap`` the temperature makes no difference, as it does not change :math:`\sigma`.

    Args:
        temperature: :math:`T_\mathrm{norm}`, in standard deviations of a row's logits.
    """

    least_classes = 3  # two logits over their own deviation differ by a constant

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__(temperature)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return norm_kd_loss(student.logits, teacher.logits, self.temperature)
