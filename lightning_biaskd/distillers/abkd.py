"""Distillation with the α-β-divergence."""

import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def abkd_loss(student_logits: Tensor, teacher_logits: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    r"""The α-β-divergence of student from teacher of each sample; see :class:`ABKD`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        alpha: α, not negative; α + β is positive.
        beta: β, not negative.
        temperature: τ.

    Returns:
        (B,)

    Example:
        With (α, β) = (1, 0) it is KL(teacher, student), with (0, 1) it is KL(student, teacher):

        >>> import torch
        >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> abkd_loss(s, t, alpha=1.0, beta=0.0, temperature=1.0)
        tensor([0.3278])
        >>> abkd_loss(s, t, alpha=0.0, beta=1.0, temperature=1.0)
        tensor([0.4338])
        >>> abkd_loss(s, t, alpha=0.5, beta=0.5, temperature=1.0)
        tensor([0.3690])
    """
    log_s = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    log_t = F.log_softmax(at_least_float32(teacher_logits) / temperature, dim=1)
    if alpha == 0:
        return _limit(log_t, log_s, beta)
    if beta == 0:
        return _limit(log_s, log_t, alpha)
    total = alpha + beta
    own = (alpha * (total * log_t).exp() + beta * (total * log_s).exp()) / total
    return (own - (alpha * log_t + beta * log_s).exp()).sum(1) / (alpha * beta)


def _limit(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:
    """The divergence of q from p as β goes to 0."""
    p, q = (alpha * log_p).exp(), (alpha * log_q).exp()
    return (alpha * p * (log_p - log_q) - p + q).sum(1) / alpha**2


class ABKD(Distiller):
    r"""Wang, Yang, Wang, Wang, Xu, Huang, *ABKD: Pursuing a Proper Allocation of the Probability Mass in KD*.

    ICML 2025, arXiv 2505.04560. With :math:`p^T, p^S` the distributions at τ,

    .. math::
        \ell_i = -\frac{1}{\alpha\beta} \sum_c \Big( (p^T_{ic})^\alpha (p^S_{ic})^\beta
            - \frac{\alpha}{\alpha+\beta} (p^T_{ic})^{\alpha+\beta}
            - \frac{\beta}{\alpha+\beta} (p^S_{ic})^{\alpha+\beta} \Big)

    A small α lets the student attend to classes on which it is far from the teacher, a large β to classes of which it
    is confident. (1, 0) is KL(teacher, student) and (0, 1) is KL(student, teacher). If α or β is 0, the loss is the
    limit of the formula; there the authors' code divides by α (or β) once where the limit has its square, which makes
    no difference at 1.

    The defaults are those of the authors' code (ghwang-s/abkd, ``train_ab.sh``) for resnet56→resnet20 on CIFAR-100:
    α 0.8, β 0.3, τ 4, and the weight 64 with cross-entropy at 1. α and β are tuned to the pair there. The loss has no
    factor :math:`\tau^2`; the weight contains it.

    Args:
        alpha: α, not negative.
        beta: β, not negative.
        temperature: τ.

    Raises:
        UserError: α or β is negative, or both are 0.
    """

    def __init__(self, alpha: float = 0.8, beta: float = 0.3, temperature: float = 4.0) -> None:
        super().__init__(temperature)
        if not (alpha >= 0 and beta >= 0 and alpha + beta > 0):
            raise UserError(f"alpha and beta must not be negative, and one positive, got {alpha} and {beta}")
        self.alpha = alpha
        self.beta = beta

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return abkd_loss(student.logits, teacher.logits, self.alpha, self.beta, self.temperature)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, {super().extra_repr()}"
