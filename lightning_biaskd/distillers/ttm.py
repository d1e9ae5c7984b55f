"""Transformed teacher matching, plain and weighted."""

from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import check_positive
from lightning_biaskd.logits import kl_divergence
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, exponent: float) -> Tensor:
    r"""The divergence of each sample from its power-transformed teacher; see :class:`TTM`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        exponent: γ of the power transform.

    Returns:
        (B,)

    Example:
        >>> import torch
        >>> ttm_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), exponent=0.5)
        tensor([0.])
    """
    return kl_divergence(student_logits, exponent * at_least_float32(teacher_logits))


def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, exponent: float) -> Tensor:
    r""":func:`ttm_loss`, each sample weighted by the smoothness of the teacher's output; see :class:`WTTM`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        exponent: γ of the power transform.

    Returns:
        (B,)

    Example:
        >>> import torch
        >>> wttm_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), exponent=0.5)
        tensor([0.1424])
    """
    power_sum = (exponent * at_least_float32(teacher_logits).log_softmax(1)).logsumexp(1).exp()
    return power_sum * ttm_loss(student_logits, teacher_logits, exponent)


class TTM(Distiller):
    r"""Zheng, Yang, *Knowledge Distillation Based on Transformed Teacher Matching*, ICLR 2024, arXiv 2402.11148.

    .. math::
        \ell_i = \mathrm{KL}\big(p^{T,\gamma}_i \,\|\, p^S_i\big), \qquad
        p^{T,\gamma}_{ic} = \frac{(p^T_{ic})^\gamma}{\sum_k (p^T_{ik})^\gamma} = \mathrm{softmax}(\gamma z^T_i)_c

    Only the teacher is softened, at temperature :math:`1/\gamma`, and it is rectified there; the student stays at 1,
    and there is no squared temperature. The loss is not zero at the teacher. The default is the example in the authors'
    README (zkxufo/TTM, vgg13→vgg8), with weight 45 and cross-entropy at 1; the paper tunes both to each pair.

    Args:
        exponent: γ of the power transform.
    """

    def __init__(self, exponent: float = 0.1) -> None:
        check_positive(exponent=exponent)
        super().__init__(1 / exponent)
        self.exponent = exponent

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return ttm_loss(student.logits, teacher.logits, self.exponent)

    def extra_repr(self) -> str:
        return f"exponent={self.exponent}"


class WTTM(TTM):
    r"""The weighted form of :class:`TTM`, from the same paper (arXiv 2402.11148).

    .. math:: \ell_i = \Big(\sum_c (p^T_{ic})^\gamma\Big)\, \mathrm{KL}\big(p^{T,\gamma}_i \,\|\, p^S_i\big)

    The power sum is 1 for a one-hot output and :math:`C^{1 - \gamma}` for a uniform one: smooth outputs count more. The
    default is the example in the authors' README, where WTTM at weight 4 is added to CRD.

    Args:
        exponent: γ of the power transform.
    """

    def __init__(self, exponent: float = 0.2) -> None:
        super().__init__(exponent)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return wttm_loss(student.logits, teacher.logits, self.exponent)
