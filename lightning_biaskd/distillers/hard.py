"""Hard-label distillation."""

import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def hard_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The cross-entropy of each sample with the teacher's first class.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).

    Returns:
        (B,)

    Example:
        >>> import torch
        >>> hard_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([0.6931])
    """
    return F.cross_entropy(at_least_float32(student_logits), teacher_logits.argmax(1), reduction="none")


class Hard(Distiller):
    r"""Hard-label distillation as in Touvron et al., *Training data-efficient image transformers*, ICML 2021.

    arXiv 2012.12877, equation 3:

    .. math:: \ell_i = -\log \mathrm{softmax}(z^S_i)_{c_i}, \qquad c_i = \arg\max_c z^T_{ic}

    There it has the same weight as cross-entropy. In :class:`DistillationToken` it trains the second head of a DeiT.
    Only the teacher's first class counts. So where the strategy makes the label that class, as ``swap``, ``onehot`` and
    ``revise`` do in full, the student learns the label. If ``label_trust`` makes less of a correction, the teacher's
    class may stay the first.
    """

    soft_labels = True

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return hard_loss(student.logits, teacher.logits)
