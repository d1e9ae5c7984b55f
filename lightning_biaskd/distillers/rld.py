"""Refined logit distillation."""

from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import check_positive, check_weights
from lightning_biaskd.logits import kl_divergence, split_label
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_MASKED = -1e9


def rld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    confidence_temperature: float,
) -> Tensor:
    r"""The refined loss of each sample; see :class:`RLD`.

    Args:
        student_logits: (B, C), C at least 2.
        teacher_logits: (B, C).
        target: (B,) labels.
        alpha: weight of the sample confidence.
        beta: weight of the masked correlation.
        temperature: τ, of the masked correlation.
        confidence_temperature: τ', of the sample confidence.

    Returns:
        (B,)

    Example:
        The teacher ranks class 1 first and the label second. Classes 0 and 1 are masked, so only one is left to
        correlate, and the student must become as sure of the label as the teacher is of its first class.

        >>> import torch
        >>> s, t, y = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([0])
        >>> args = {"beta": 8.0, "temperature": 4.0, "confidence_temperature": 1.0}
        >>> rld_loss(s, t, y, alpha=1.0, **args)
        tensor([0.0167])
        >>> rld_loss(t.roll(1, 1), t, torch.tensor([2]), alpha=0.0, **args)
        tensor([0.])
    """
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
    student_pair, _ = split_label(student / confidence_temperature, target)
    teacher_pair, _ = split_label(teacher / confidence_temperature, teacher.argmax(1))
    confidence = kl_divergence(student_pair, teacher_pair)

    masked = teacher >= teacher.gather(1, target.unsqueeze(1))
    correlation = kl_divergence(
        (student / temperature).masked_fill(masked, _MASKED), (teacher / temperature).masked_fill(masked, _MASKED)
    )
    return alpha * confidence_temperature**2 * confidence + beta * temperature**2 * correlation


class RLD(Distiller):
    r"""Sun, Chen, Lyu, Chen, Chen, Wang, *Knowledge Distillation with Refined Logits*, ICCV 2025, arXiv 2408.07703.

    .. math::
        \ell_i = \alpha\, \tau'^2\, \mathrm{KL}(b^T_i \,\|\, b^S_i) + \beta\, \tau^2\, \mathrm{KL}(m^T_i \,\|\, m^S_i)

    *Sample confidence* compares, at τ', the teacher's distribution :math:`b^T` over (its first class, rest) with the
    student's :math:`b^S` over (label, rest): the student should be as sure of the label as the teacher is of its first
    class. *Masked correlation* compares, at τ, the distributions :math:`m` over the classes that the teacher
    ranks below the label; the label, and every class that the teacher wrongly puts above it or level with it, are left
    out on both sides. With none left, the second part is zero.

    RLD is itself a corrector: on a wrong sample it already takes nothing from the teacher that contradicts the label.
    The published method is ``bias=None``. Inside :class:`~lightning_biaskd.bias.BiasStrategy` use ``mode="none"``,
    which passes the teacher's output unchanged and only weighs right and wrong samples separately. Any other mode puts
    the label on top first (``blend`` usually does), so that RLD has nothing left to mask.

    The defaults are those of the authors' code (zju-SWJ/RLD), with cross-entropy at weight 1 and a linear warm-up over
    20 epochs there.

    Args:
        alpha: weight of the sample confidence.
        beta: weight of the masked correlation.
        temperature: τ, of the masked correlation. A wrong teacher is rectified at the same τ.
        confidence_temperature: τ', of the sample confidence.
        warmup_epochs: epochs of the linear warm-up.

    Raises:
        UserError: a temperature is not positive.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        confidence_temperature: float = 1.0,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__(temperature, warmup_epochs)
        check_positive(confidence_temperature=confidence_temperature)
        check_weights(alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta
        self.confidence_temperature = confidence_temperature
        if alpha == 0:
            self.least_classes = 3  # with one class below the label there is nothing to correlate

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return rld_loss(
            student.logits,
            teacher.logits,
            target,
            self.alpha,
            self.beta,
            self.temperature,
            self.confidence_temperature,
        )

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, confidence_temperature={self.confidence_temperature}, "
            f"{super().extra_repr()}"
        )
