"""Distillation from a stronger teacher."""

import torch
from torch import Tensor

from lightning_biaskd.distiller import Dense, Distiller, Needs
from lightning_biaskd.errors import check_weights
from lightning_biaskd.logits import centred, kept_rows
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_EPS = 1e-8


def _one_minus_pearson(x: Tensor, y: Tensor, dim: int, keep: Tensor | None = None) -> Tensor:
    r"""Terms (B, C), none below zero, that add up to one minus Pearson's correlation along ``dim``.

    With centred vectors :math:`a, b` scaled to length 1 it is :math:`1 - \rho = \frac12 \sum_i (a_i - b_i)^2`. The
    authors' code divides by :math:`|a||b| + 10^{-8}`; ``share`` accounts for that.
    """
    used = kept_rows(x, keep)
    count = used.expand_as(x).sum(dim, keepdim=True).clamp_min(1)
    a, b = centred(x, used, dim), centred(y, used, dim)
    length_a, length_b = a.norm(dim=dim, keepdim=True), b.norm(dim=dim, keepdim=True)
    share = length_a * length_b / (length_a * length_b + _EPS)
    floor = torch.finfo(x.dtype).tiny ** 0.5
    gap = a / length_a.clamp_min(floor) - b / length_b.clamp_min(floor)
    return torch.where(used, share * gap.square() / 2 + (1 - share) / count, 0)


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float,
    gamma: float,
    temperature: float,
    keep: Tensor | None = None,
) -> Tensor:
    r"""The relational loss, divided among the samples; see :class:`DIST`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        beta: weight of the inter-class relation, within a sample.
        gamma: weight of the intra-class relation, over the batch.
        temperature: τ.
        keep: (B,) bool, the samples that count; ``None`` for all. The others get loss 0.

    Returns:
        (B,). The mean over the kept samples is the published loss of these samples alone.

    Example:
        >>> s = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
        >>> t = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0]])
        >>> dist_loss(s, t, beta=1.0, gamma=1.0, temperature=1.0)
        tensor([0.0663, 0.1217, 0.0856])
        >>> dist_loss(s, t, beta=1.0, gamma=1.0, temperature=1.0, keep=torch.tensor([True, True, False]))
        tensor([0.7010, 0.7010, 0.0000])
    """
    p_s = (at_least_float32(student_logits) / temperature).softmax(1)
    p_t = (at_least_float32(teacher_logits) / temperature).softmax(1)
    size = len(p_s) if keep is None else keep.sum()
    inter = _one_minus_pearson(p_s, p_t, 1, keep).sum(1)
    intra = size * _one_minus_pearson(p_s, p_t, 0, keep).mean(1)
    return temperature**2 * (beta * inter + gamma * intra)


class DIST(Distiller):
    r"""Huang, You, Wang, Qian, Xu, *Knowledge Distillation from A Stronger Teacher*, NeurIPS 2022, arXiv 2205.10536.

    With :math:`P = \mathrm{softmax}(z/\tau)`, (B, C), and Pearson's correlation :math:`\rho` the loss of a batch is

    .. math::
        L = \tau^2 \Big(\frac{\beta}{B} \sum_i \big(1 - \rho(P^S_{i:}, P^T_{i:})\big)
            + \frac{\gamma}{C} \sum_c \big(1 - \rho(P^S_{:c}, P^T_{:c})\big)\Big)

    The second sum is over the batch. It is divided among the samples by
    :math:`1 - \rho = \frac12 \sum_i (a_i - b_i)^2`, with :math:`a, b` the two columns centred and scaled to length 1:

    .. math::
        \ell_i = \tau^2 \Big(\beta \big(1 - \rho(P^S_{i:}, P^T_{i:})\big)
            + \gamma \frac{B}{2C} \sum_c (a_{ic} - b_{ic})^2\Big)

    The mean is then the published loss. No :math:`\ell_i` is negative, and all are zero if student and teacher agree,
    so weighing samples separately does not move the optimum. Statistics are over the kept samples of the global batch.

    The defaults are the authors' for CIFAR-100 (image_classification_sota, ``dist_cifar.yaml``), where the loss has
    weight 2 with cross-entropy at 1; on ImageNet τ is 1.

    Args:
        beta: weight of the inter-class relation, within a sample.
        gamma: weight of the intra-class relation, over the batch.
        temperature: τ.
    """

    needs = Needs(pairwise=True)

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__(temperature)
        check_weights(beta=beta, gamma=gamma)
        self.beta = beta
        self.gamma = gamma
        if gamma == 0:
            self.least_classes = 3  # the correlation of two probabilities is 1 or -1

    @property
    def dense(self) -> Dense:
        """Pixels are samples, as in the authors' code for segmentation."""
        return "rows"

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return dist_loss(student.logits, teacher.logits, self.beta, self.gamma, self.temperature, keep)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, gamma={self.gamma}, {super().extra_repr()}"
