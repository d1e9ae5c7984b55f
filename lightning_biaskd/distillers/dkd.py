"""Decoupled knowledge distillation."""

from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import check_weights
from lightning_biaskd.logits import kl_divergence, split_label
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    r"""The decoupled loss of each sample; see :class:`DKD`.

    Args:
        student_logits: (B, C), C at least 2.
        teacher_logits: (B, C).
        target: (B,) labels.
        alpha: weight of the target-class part.
        beta: weight of the non-target-class part.
        temperature: τ.

    Returns:
        (B,)

    Example:
        With the weights that KD implies, :math:`\alpha = 1` and :math:`\beta = 1 - p^T_y`, it is KD:

        >>> import torch
        >>> s, t, y = torch.tensor([[1.0, 0.5, -1.0]]), torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])
        >>> beta = 1 - t.softmax(1)[0, 0].item()
        >>> from lightning_biaskd.distillers import kd_loss
        >>> torch.allclose(dkd_loss(s, t, y, 1.0, beta, 1.0), kd_loss(s, t, 1.0))
        True
    """
    student_pair, student_rest = split_label(at_least_float32(student_logits) / temperature, target)
    teacher_pair, teacher_rest = split_label(at_least_float32(teacher_logits) / temperature, target)
    tckd = kl_divergence(student_pair, teacher_pair)
    nckd = kl_divergence(student_rest, teacher_rest)
    return temperature**2 * (alpha * tckd + beta * nckd)


class DKD(Distiller):
    r"""Zhao, Cui, Song, Qiu, Liang, *Decoupled Knowledge Distillation*, CVPR 2022, arXiv 2203.08679.

    .. math::
        \ell_i = \tau^2 \big(\alpha\, \mathrm{KL}(b^T_i \,\|\, b^S_i) + \beta\, \mathrm{KL}(q^T_i \,\|\, q^S_i)\big)

    with :math:`b` the distribution over (label, rest) and :math:`q` the one over the other classes, both at τ. The
    defaults are the paper's for CIFAR-100 (β is tuned to the pair there: 8 for most, 6 for vgg13 and WRN, 2 for
    resnet56→20 and 110→32), with cross-entropy at weight 1 and a linear warm-up over 20 epochs, as in the authors' code
    (mdistiller).

    Args:
        alpha: weight of the target-class part.
        beta: weight of the non-target-class part.
        temperature: τ.
        warmup_epochs: epochs of the linear warm-up.
    """

    soft_labels = True

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup_epochs: int = 20
    ) -> None:
        super().__init__(temperature, warmup_epochs)
        check_weights(alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta
        if alpha == 0:
            self.least_classes = 3  # with one class besides the label there is nothing to compare

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return dkd_loss(student.logits, teacher.logits, target, self.alpha, self.beta, self.temperature)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, {super().extra_repr()}"
