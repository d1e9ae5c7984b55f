"""Logit standardization, around any method that reads logits."""

from torch import Tensor

from lightning_biaskd.distiller import Distiller, Wrapper
from lightning_biaskd.distillers.distillation_token import DistillationToken
from lightning_biaskd.distillers.kd import KD
from lightning_biaskd.errors import UserError, check_weights
from lightning_biaskd.networks.outputs import Outputs, at_least_float32, with_logits


def standardize(logits: Tensor, eps: float = 1e-7) -> Tensor:
    r""":math:`(z - \bar z) / (\sigma + \epsilon)` of each row, with the unbiased standard deviation.

    Args:
        logits: (B, C), C at least 2.
        eps: :math:`\epsilon`; 1e-7 in the authors' code.

    Returns:
        (B, C), in float32 at least.

    Example:
        >>> import torch
        >>> standardize(torch.tensor([[3.0, 0.0, 0.0]]))
        tensor([[ 1.1547, -0.5774, -0.5774]])
    """
    z = at_least_float32(logits)
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + eps)


class LogitStandardization(Wrapper):
    r"""Sun, Ren, Li, Wang, Cao, *Logit Standardization in Knowledge Distillation*, CVPR 2024, arXiv 2403.01427.

    .. math::
        \ell_i = w\, \ell^{\mathrm{inner}}_i\big(\mathcal{Z}(z^S), \mathcal{Z}(z^T)\big), \qquad
        \mathcal{Z}(z)_i = \frac{z_i - \bar z_i}{\sigma(z_i) + 10^{-7}}

    The inner method sees z-scores in place of logits, so the student does not have to match the scale of the teacher's.
    The defaults are the authors' for CIFAR-100 and ImageNet alike: base temperature 2, weight 9 (their README), with
    KD's cross-entropy at 0.1 and DKD's at 1.

    :class:`~lightning_biaskd.bias.BiasStrategy` rectifies the raw logits, at the inner method's temperature, before
    they are standardized. :math:`\mathcal{Z}` is affine in each row and does not depend on the order of the classes, so
    ``swap`` gives the same before and after it; ``blend``, ``onehot`` and ``revise`` do not.

    Args:
        distiller: the inner method, a single one; in a sum, wrap each part.
        weight: :math:`w`.

    Raises:
        UserError: the inner method is a sum, or :class:`DistillationToken`, which belongs around this one.

    Example:
        >>> import torch
        >>> student, teacher = Outputs(torch.tensor([[1.0, 0.0, 0.0]])), Outputs(torch.tensor([[9.0, 4.0, 4.0]]))
        >>> LogitStandardization()(student, teacher, torch.tensor([0])).abs() < 1e-5
        tensor([True])
    """

    def __init__(self, distiller: Distiller | None = None, weight: float = 9.0) -> None:
        inner = KD(2.0) if distiller is None else distiller
        if next(inner.terms())[0] is not inner:
            raise UserError("LogitStandardization wraps one method: in a sum, wrap each part")
        if isinstance(inner, DistillationToken):
            raise UserError(
                "LogitStandardization around DistillationToken would miss the token's logits: write "
                "DistillationToken(LogitStandardization(…))"
            )
        super().__init__(inner)
        check_weights(weight=weight)
        self.weight = weight
        self.least_classes = 2 if inner.reads == "features" else 3  # the z-scores of two logits are constants

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        student = with_logits(student, standardize(student.logits))
        teacher = with_logits(teacher, standardize(teacher.logits))
        loss: Tensor = self.distiller(student, teacher, target, keep)
        return self.weight * loss

    def extra_repr(self) -> str:
        return f"weight={self.weight}"
