"""The adaptive target term of one-for-all distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def ofa_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, exponent: float, temperature: float
) -> Tensor:
    r"""The cross-entropy with an enhanced label of each sample; see :class:`OFA`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) labels.
        exponent: γ, positive.
        temperature: τ.

    Returns:
        (B,)

    Example:
        The teacher gives each of two classes 1/2; with γ = 2, the weights of label and other class are 1.5² - 1
        and 0.5²:

        >>> even, label = torch.zeros(1, 2), torch.tensor([0])
        >>> ofa_loss(even, even, label, exponent=2.0, temperature=1.0)  # 1.5 log 2
        tensor([1.0397])
    """
    p_t = F.softmax(at_least_float32(teacher_logits) / temperature, dim=1)
    is_label = torch.zeros_like(p_t).scatter(1, target.unsqueeze(1), 1.0)
    log_s = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    return -(((p_t + is_label) ** exponent - is_label) * log_s).sum(1)


class OFA(Distiller):
    r"""Hao et al., *One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation*.

    NeurIPS 2023, arXiv 2310.19444; the loss on the logits. With :math:`p^T, p^S` the distributions at τ,

    .. math::
        \ell_i = -\big((1 + p^T_{iy})^\gamma - 1\big) \log p^S_{iy} - \sum_{c \neq y} (p^T_{ic})^\gamma \log p^S_{ic}

    With γ = 1 it is the cross-entropy with the teacher's distribution. A larger γ raises the weight of the label, the
    more the surer the teacher is of it, and lowers that of classes to which the teacher gives little. It isn't zero at
    the teacher.

    This is the authors' code (Hao840/OFAKD). In the paper, γ is on the label's factor alone; there it also contains the
    cross-entropy with the label, which is the 1 that the code subtracts. The exits at intermediate layers of the
    student are not implemented.

    The default γ of 1.5 is that of the authors' example for ImageNet. In their example for CIFAR-100 it is 1. τ is 1,
    and both losses have weight 1.

    Args:
        exponent: γ, positive.
        temperature: τ.

    Raises:
        UserError: the exponent is not positive.
    """

    def __init__(self, exponent: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if exponent <= 0:
            raise UserError(f"exponent must be positive, got {exponent}")
        self.exponent = exponent

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return ofa_loss(student.logits, teacher.logits, target, self.exponent, self.temperature)

    def extra_repr(self) -> str:
        return f"exponent={self.exponent}, {super().extra_repr()}"
