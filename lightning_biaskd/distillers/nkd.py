"""Normalized knowledge distillation."""

import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import check_weights
from lightning_biaskd.logits import without_label
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, gamma: float, temperature: float
) -> Tensor:
    r"""The normalized loss of each sample; see :class:`NKD`.

    Args:
        student_logits: (B, C), C at least 2.
        teacher_logits: (B, C).
        target: (B,) labels.
        gamma: weight of the non-target part.
        temperature: τ of the non-target part.

    Returns:
        (B,)

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[1.0, 0.5, -1.0]]), torch.tensor([[2.0, 0.0, 1.0]])
        >>> nkd_loss(s, t, torch.tensor([0]), gamma=1.5, temperature=1.0)
        tensor([2.3162])
    """
    z_s, z_t = at_least_float32(student_logits), at_least_float32(teacher_logits)
    y = target.unsqueeze(1)
    label = (z_t.softmax(1).gather(1, y) * z_s.log_softmax(1).gather(1, y)).squeeze(1)
    rest_s, rest_t = without_label(z_s, target) / temperature, without_label(z_t, target) / temperature
    return gamma * temperature**2 * F.cross_entropy(rest_s, rest_t.softmax(1), reduction="none") - label


class NKD(Distiller):
    r"""Yang et al., *From Knowledge Distillation to Self-Knowledge Distillation*, ICCV 2023, arXiv 2303.13005.

    .. math::
        \ell_i = -\,p^T_{iy} \log p^S_{iy} - \gamma\, \tau^2 \sum_{c \neq y} q^T_{ic} \log q^S_{ic}

    with :math:`p` the distribution at temperature 1 and :math:`q` the one over the classes other than the label, at τ.
    A cross-entropy, not a divergence: it isn't zero at the teacher. The defaults are the paper's for ImageNet, with
    weight 1 with cross-entropy at 1; the authors' code (cls_KD) has :math:`\gamma = 3.5`, :math:`\tau = 3` on
    CIFAR-100.

    Args:
        gamma: weight of the non-target part.
        temperature: τ of the non-target part.
    """

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        check_weights(gamma=gamma)
        self.soft_labels = temperature == 1  # at another one, it reads probabilities at two temperatures
        self.gamma = gamma

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return nkd_loss(student.logits, teacher.logits, target, self.gamma, self.temperature)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, {super().extra_repr()}"
