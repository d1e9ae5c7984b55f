"""Swapped logit distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_biaskd.bias.rectify import rectify_logits
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.distillers.kd import kd_loss
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def sld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperatures: Sequence[float],
    pseudo: float | Tensor,
    detach: bool,
) -> Tensor:
    r"""The loss of each sample against the swapped teacher and the swapped student; see :class:`SLD`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) labels.
        temperatures: the values of τ.
        pseudo: weight of the swapped student.
        detach: let no gradient flow through the swapped student.

    Returns:
        (B,)

    Example:
        >>> s, t, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0])
        >>> args = {"temperatures": [1.0], "pseudo": 1.0, "detach": True}
        >>> sld_loss(s, t, y, **args)  # the teacher is wrong and swapped, the student is right
        tensor([0.0826])
        >>> sld_loss(-s, -t, y, **args)  # the reverse: the student is swapped
        tensor([2.5300])
    """
    student = at_least_float32(student_logits)
    swapped_teacher = rectify_logits(teacher_logits, target, "swap", space="logits")
    swapped_student = rectify_logits(student.detach() if detach else student, target, "swap", space="logits")
    return torch.stack(
        [kd_loss(student, swapped_teacher, t) + pseudo * kd_loss(student, swapped_student, t) for t in temperatures]
    ).sum(0)


class SLD(Distiller):
    r"""Limantoro, Lin, Wang, Tsai, Shuai, Huang, Cheng, *Swapped Logit Distillation via Bi-level Teacher Alignment*.

    Multimedia Systems 2025, arXiv 2504.20108.

    .. math::
        \ell_i = \sum_{\tau=1}^{6} \tau^2 \big(\mathrm{KL}(\mathrm{softmax}(\tilde z^T_i/\tau) \,\|\, q_{i\tau})
        + [e > 150]\, \mathrm{KL}(\mathrm{softmax}(\tilde z^S_i/\tau) \,\|\, q_{i\tau})\big), \qquad
        q_{i\tau} = \mathrm{softmax}(z^S_i/\tau)

    where :math:`\tilde z` are logits in which the label, if not first, is exchanged with the first class, and e is the
    epoch, from 1. The swapped student is a second teacher, which teaches nothing on samples that the student gets
    right.

    Temperatures, epoch and weights (0.1 for cross-entropy, 0.9 here) are those of the authors' code
    (StephenEkaputra/Swapped-Logit-Distillation). That code sums the loss of a weakly and of a strongly augmented view.
    With ``strong_view=True`` of our data both are in the batch, whose mean is their average. The weights are therefore
    doubled here, to 0.2 for cross-entropy and 1.8, as in ``configs/method/sld_two_views.yaml``. That code also lets
    gradient flow through the swapped student, which ``detach=False`` reproduces: the loss is the same, its gradient is
    not.

    SLD corrects the teacher itself: its first half is rectification by ``swap``. The published method is ``bias=None``.
    Inside :class:`~lightning_biaskd.bias.BiasStrategy` use ``mode="none"``, which only weighs right and wrong samples
    separately, or ``"swap"``, which gives the same. Other modes correct the teacher first, so that SLD usually finds
    nothing to swap and their correction replaces its own.

    Args:
        temperatures: the values of τ, whose losses are summed. If a wrong teacher is rectified, it is rectified at
            their mean.
        pseudo_epochs: number of epochs without the swapped student. Until ``set_epoch`` is called, it is used.
        detach: let no gradient flow through the swapped student.

    Attributes:
        pseudo: buffer, weight of the swapped student, 0 or 1.

    Raises:
        UserError: no temperature, or one that is not positive.
    """

    pseudo: Tensor

    def __init__(
        self,
        temperatures: Sequence[float] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        pseudo_epochs: int = 150,
        detach: bool = True,
    ) -> None:
        if not temperatures or min(temperatures) <= 0:
            raise UserError(f"temperatures must be positive, at least one, got {temperatures}")
        super().__init__(sum(temperatures) / len(temperatures))
        self.temperatures = tuple(temperatures)
        self.pseudo_epochs = pseudo_epochs
        self.detach = detach
        self.register_buffer("pseudo", torch.tensor(1.0), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return sld_loss(student.logits, teacher.logits, target, self.temperatures, self.pseudo, self.detach)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.pseudo.fill_(float(epoch >= self.pseudo_epochs))

    def extra_repr(self) -> str:
        return f"temperatures={self.temperatures}, pseudo_epochs={self.pseudo_epochs}, detach={self.detach}"
