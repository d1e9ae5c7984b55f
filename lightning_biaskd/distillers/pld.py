"""Plackett-Luce distillation."""

import torch
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def pld_loss(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    r"""The weighted ranking loss of each sample; see :class:`PLD`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) labels.
        temperature: τ of the teacher's weights.

    Returns:
        (B,)

    Example:
        An indifferent teacher of three classes: the choices of the first, of the second and of the last class cost
        log 3, log 2 and 0, a third each.

        >>> even = torch.zeros(1, 3)
        >>> pld_loss(even, even, torch.tensor([1]), temperature=4.0)
        tensor([0.5973])
    """
    z_s, z_t = at_least_float32(student_logits), at_least_float32(teacher_logits)
    ranks = z_t.scatter(1, target.unsqueeze(1), torch.inf).argsort(dim=1, descending=True, stable=True)
    ranked = z_s.gather(1, ranks)
    remaining = ranked.flip(1).logcumsumexp(1).flip(1)
    weights = (z_t / temperature).softmax(1).gather(1, ranks)
    return (weights * (remaining - ranked)).sum(1)


class PLD(Distiller):
    r"""Bassam, Zhu, Bian, *PLD: A Choice-Theoretic List-Wise Knowledge Distillation*, NeurIPS 2025, arXiv 2506.12542.

    With π the ranking that puts the label first and then the other classes by falling teacher logit, and
    :math:`q^T = \mathrm{softmax}(z^T/\tau)`,

    .. math::
        \ell_i = \sum_{k=1}^{C} q^T_{i\pi_k} \Big(\log \sum_{l \ge k} e^{z^S_{i\pi_l}} - z^S_{i\pi_k}\Big)

    The student chooses the classes one after the other, each among those that remain, and the teacher's confidence in
    a class is the weight of its choice. The label's choice is cross-entropy at weight :math:`q^T_{iy}`, so PLD can
    stand in the place of cross-entropy (``ce_weight=0``), as published. The student stays at temperature 1, and the
    loss isn't zero at the teacher. Equal teacher logits are ranked by class index.

    The label is first whatever the teacher says, but a wrong teacher gives it a small weight. Any ``mode`` that
    corrects the teacher gives it a larger one. With ``mode="drop"`` and without cross-entropy, a wrong sample teaches
    nothing, unless ``refund`` gives its weight to cross-entropy.

    The paper's τ is 1 on ImageNet; 4 is its value on CIFAR-100.

    Args:
        temperature: τ of the teacher's weights.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__(temperature)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return pld_loss(student.logits, teacher.logits, target, self.temperature)
