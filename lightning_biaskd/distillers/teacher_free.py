"""Two methods without a teacher: smoothed labels and a virtual teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import check_share
from lightning_biaskd.logits import kl_divergence
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def label_smoothing_loss(student_logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    r"""Cross-entropy of each sample with its smoothed label; see :class:`LabelSmoothing`.

    Args:
        student_logits: (B, C).
        target: (B,) labels.
        smoothing: ε, the mass that is spread over all classes.

    Returns:
        (B,)

    Example:
        >>> label_smoothing_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), smoothing=0.1)
        tensor([0.2269])
    """
    return F.cross_entropy(at_least_float32(student_logits), target, label_smoothing=smoothing, reduction="none")


def teacher_free_loss(student_logits: Tensor, target: Tensor, correct: float, temperature: float) -> Tensor:
    r"""The divergence of each sample from a virtual teacher; see :class:`TeacherFree`.

    Args:
        student_logits: (B, C), C at least 2.
        target: (B,) labels.
        correct: the virtual teacher's probability of the label.
        temperature: τ of the virtual teacher.

    Returns:
        (B,)

    Example:
        >>> teacher_free_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), correct=0.99, temperature=20.0)
        tensor([0.4096])
    """
    z = at_least_float32(student_logits)
    virtual = torch.full_like(z, (1 - correct) / (z.shape[1] - 1)).scatter(1, target.unsqueeze(1), correct)
    return kl_divergence(z, virtual / temperature)


class LabelSmoothing(Distiller):
    r"""Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, *Rethinking the Inception Architecture*, CVPR 2016, arXiv 1512.00567.

    .. math:: \ell_i = -\sum_c q_{ic} \log p^S_{ic}, \qquad q_{ic} = (1 - \epsilon)\, [c = y_i] + \epsilon / C

    The baseline that every distillation method should beat. It reads no teacher, so
    :class:`~lightning_biaskd.bias.BiasStrategy` does not change it. It contains the cross-entropy: use ``ce_weight=0``.
    ε = 0.1 is the paper's; Yuan et al. (see :class:`TeacherFree`) spread it over the other classes only in their code,
    which is ``smoothing=0.1 * C / (C - 1)`` here.

    Args:
        smoothing: ε, the mass that is spread over all classes.

    Raises:
        UserError: a smoothing outside [0, 1].
    """

    reads = "nothing"

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        check_share(smoothing=smoothing)
        self.smoothing = smoothing

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return label_smoothing_loss(student.logits, target, self.smoothing)

    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}"


class TeacherFree(Distiller):
    r"""Tf-KD\ :sub:`reg`: a virtual teacher that is always right.

    Yuan, Tay, Li, Wang, Feng, *Revisiting Knowledge Distillation via Label Smoothing Regularization*, CVPR 2020,
    arXiv 1909.11723.

    .. math::
        \ell_i = \mathrm{KL}\big(\mathrm{softmax}(v_i/\tau) \,\|\, p^S_i\big), \qquad
        v_{ic} = a\ \text{if}\ c = y_i,\ \text{else}\ \tfrac{1 - a}{C - 1}

    As in the authors' code, the probabilities :math:`v` of the virtual teacher are softened as if they were logits, the
    student stays at temperature 1, and no :math:`\tau^2` enters. That code also averages over the classes, then
    multiplies by a number that depends on the network: for ResNet-18 on CIFAR-100 by the number of classes, which is
    this loss, with τ = 20 and weight 0.1 with cross-entropy at 0.9.

    It reads no teacher, so :class:`~lightning_biaskd.bias.BiasStrategy` does not change it.

    Args:
        correct: :math:`a`, the virtual teacher's probability of the label; 0.99 in the authors' code.
        temperature: τ of the virtual teacher; 20 for ResNet-18, 10 to 40 for other networks there.

    Raises:
        UserError: a probability outside [0, 1].
    """

    reads = "nothing"

    def __init__(self, correct: float = 0.99, temperature: float = 20.0) -> None:
        super().__init__(temperature)
        check_share(correct=correct)
        self.correct = correct

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return teacher_free_loss(student.logits, target, self.correct, self.temperature)

    def extra_repr(self) -> str:
        return f"correct={self.correct}, {super().extra_repr()}"
