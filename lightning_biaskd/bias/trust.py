r"""How much of the teacher each sample gets, by comparing teacher and student on its label.

Every function takes (B, C) logits of both networks and (B,) labels, and returns a trust :math:`a_i` in [0, 1] for each
sample, (B,), without gradient. With :math:`\mathrm{CE}^S_i` and :math:`\mathrm{CE}^T_i` the cross-entropies at
temperature 1 of the outputs as they are:

=================== ============================================================== ====================================
function            :math:`a_i`                                                    reads as
=================== ============================================================== ====================================
:func:`student`     :math:`\sigma((\mathrm{CE}^S_i - \mathrm{CE}^T_i) / s)`        how much better the teacher knows it
:func:`wsld`        :math:`1 - \exp(-\mathrm{CE}^S_i / \mathrm{CE}^T_i)`           the weight of WSLD (arXiv 2102.00650)
:func:`bounded`     1 where :math:`\mathrm{CE}^T_i \le \mathrm{CE}^S_i + m`        yes or no
=================== ============================================================== ====================================

:func:`label` is trust in the label instead, which may be wrong too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.networks.outputs import at_least_float32

_LEAST = 1e-8


def student(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, scale: float = 0.5) -> Tensor:
    r""":math:`a_i = \sigma((\mathrm{CE}^S_i - \mathrm{CE}^T_i) / s)`: ½ where both know a sample equally well.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) labels.
        scale: s, the difference in nats at which trust is 0.73.

    Returns:
        (B,), in (0, 1).

    Example:
        >>> even, better = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
        >>> label = torch.tensor([0])
        >>> [round(student(even, teacher, label).item(), 3) for teacher in (even, better, -better)]
        [0.5, 0.756, 0.054]
    """
    student_ce, teacher_ce = _cross_entropies(student_logits, teacher_logits, target)
    return torch.sigmoid((student_ce - teacher_ce) / scale)


def wsld(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
    r""":math:`a_i = 1 - \exp(-\mathrm{CE}^S_i / \mathrm{CE}^T_i)`, for any method.

    It is the weight of Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, *Rethinking Soft Labels for Knowledge Distillation: A
    Bias-Variance Tradeoff Perspective*, ICLR 2021, arXiv 2102.00650.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) labels.

    Returns:
        (B,), in [0, 1].

    Example:
        >>> even, label = torch.zeros(1, 2), torch.tensor([0])
        >>> round(wsld(even, even, label).item(), 3)
        0.632
    """
    student_ce, teacher_ce = _cross_entropies(student_logits, teacher_logits, target)
    return -torch.expm1(-student_ce / teacher_ce.clamp_min(_LEAST))


def bounded(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, margin: float = 0.0) -> Tensor:
    r""":math:`a_i = 1` where :math:`\mathrm{CE}^T_i \le \mathrm{CE}^S_i + m`, else 0.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) labels.
        margin: m, in nats: how much worse than the student the teacher may be.

    Returns:
        (B,), 0 or 1.

    Example:
        >>> logits, label = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> bounded(torch.zeros(2, 2), logits, label)
        tensor([1., 0.])
    """
    student_ce, teacher_ce = _cross_entropies(student_logits, teacher_logits, target)
    return (teacher_ce <= student_ce + margin).to(student_ce.dtype)


def label(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
    r"""Trust in the label where the teacher contradicts it: how far the student prefers the label to the answer.

    .. math:: c_i = \sigma(s_y - s_{\hat y}) = \frac{p^S_y}{p^S_y + p^S_{\hat y}}

    with s the student's logits and :math:`\hat y` the teacher's first class. It is ½ where the teacher is right.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) labels.

    Returns:
        (B,), in (0, 1).

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> [round(label(student, teacher, torch.tensor([y])).item(), 3) for y in (0, 1)]
        [0.5, 0.119]
    """
    scores = at_least_float32(student_logits.detach())
    answer = teacher_logits.argmax(1, keepdim=True)
    return torch.sigmoid(scores.gather(1, target.unsqueeze(1)) - scores.gather(1, answer)).squeeze(1)


def _cross_entropies(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = (at_least_float32(logits.detach()) for logits in (student_logits, teacher_logits))
    return F.cross_entropy(student, target, reduction="none"), F.cross_entropy(teacher, target, reduction="none")
