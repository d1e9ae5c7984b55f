"""Distillation of perturbed copies of the teacher."""

import torch
from torch import Tensor

from lightning_biaskd.distiller import Distiller, Needs
from lightning_biaskd.distillers.kd import kd_loss
from lightning_biaskd.errors import UserError, check_weights
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.randomness.bits import normal
from lightning_biaskd.randomness.draws import Draws


def tekap_loss(
    student_logits: Tensor, teacher_logits: Tensor, noise: Tensor, share: float, weight: float, temperature: float
) -> Tensor:
    r"""KD of each sample from the teacher and from perturbed copies of it; see :class:`TeKAP`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        noise: (B, N, C), for each of N copies.
        share: ε, the share of noise in a copy.
        weight: λ of the copies.
        temperature: τ.

    Returns:
        (B,)

    Example:
        Two copies, of which the noise exchanges the classes of one:

        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> noise = torch.tensor([[[2.0, 0.0], [-2.0, 4.0]]])
        >>> tekap_loss(student, teacher, noise, share=0.5, weight=1.0, temperature=1.0)  # 3 times 0.3278
        tensor([0.9834])
    """
    teacher = at_least_float32(teacher_logits)
    copies = (1 - share) * teacher.unsqueeze(1) + share * noise.to(teacher.dtype)
    losses = torch.stack([kd_loss(student_logits, copy, temperature) for copy in copies.unbind(1)])
    return kd_loss(student_logits, teacher, temperature) + weight * losses.sum(0)


class TeKAP(Distiller):
    r"""Hossain, Akhter, Hong, Huh, *Single Teacher, Multiple Perspectives: Teacher Knowledge Augmentation*.

    ICLR 2025; on logits. With Gaussian noise :math:`\eta_n` for each of N copies, and KD's loss
    :math:`\ell^{KD}`,

    .. math::
        \ell_i = \ell^{KD}(z^S_i, z^T_i)
            + \lambda \sum_{n=1}^N \ell^{KD}\big(z^S_i, (1 - \epsilon)\, z^T_i + \epsilon\, \eta_{in}\big), \qquad
        \eta_{in} \sim \mathcal{N}(0, 1)^C

    The noise is a function of the run's seed, the epoch and the image's index, so a resumed run and any number of
    processes draw the same; views of the same image in a batch get the same noise. A copy of a corrected output is
    perturbed after the correction.

    The defaults are those of the authors' code (mdimtiazh/TeKAP, ``Ours_TeKAP_L.py``): three copies with a tenth of
    noise, λ 0.8, τ 4, and the loss at weight 0.9 with cross-entropy at 0.1. Their version on features is CRD with a
    perturbed teacher, and is not implemented.

    Args:
        copies: N.
        weight: λ of the copies.
        share: ε, the share of noise in a copy.
        temperature: τ.

    Raises:
        UserError: fewer than one copy, or a share outside [0, 1]; when called without the images' indices.
    """

    needs = Needs(index=True)

    def __init__(self, copies: int = 3, weight: float = 0.8, share: float = 0.1, temperature: float = 4.0) -> None:
        super().__init__(temperature)
        if copies < 1 or not 0 <= share <= 1:
            raise UserError(f"copies must be at least 1 and share in [0, 1], got {copies} and {share}")
        check_weights(weight=weight)
        self.copies = copies
        self.weight = weight
        self.share = share
        self.draws = Draws()

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        classes = teacher.logits.shape[1]
        noise = normal(self.draws(student.index, self.copies * classes)).view(-1, self.copies, classes)
        return tekap_loss(student.logits, teacher.logits, noise, self.share, self.weight, self.temperature)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.draws.set_epoch(epoch)

    def extra_repr(self) -> str:
        return f"copies={self.copies}, weight={self.weight}, share={self.share}, {super().extra_repr()}"
