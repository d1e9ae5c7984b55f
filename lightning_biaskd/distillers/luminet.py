"""Distillation of logits that are standardised over the batch."""

from torch import Tensor

from lightning_biaskd.distiller import Distiller, Needs
from lightning_biaskd.errors import check_weights
from lightning_biaskd.logits import kept_rows, kl_divergence, standardised
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_EPS = 1e-5


def perception(logits: Tensor, keep: Tensor | None = None) -> Tensor:
    r""":math:`(z - \mu_c) / \sqrt{\sigma_c^2 + 10^{-5}}` with mean and biased variance of each class over the batch.

    Args:
        logits: (B, C).
        keep: (B,) bool, the samples that count; ``None`` for all. The others become 0.

    Returns:
        (B, C), in float32 at least.

    Example:
        >>> import torch
        >>> perception(torch.tensor([[3.0, 1.0], [1.0, 1.0]]))
        tensor([[ 1.0000,  0.0000],
                [-1.0000,  0.0000]])
    """
    z = at_least_float32(logits)
    return standardised(z, kept_rows(z, keep), _EPS)


def luminet_loss(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float, temperature: float, keep: Tensor | None = None
) -> Tensor:
    r""":math:`\alpha^2\, \mathrm{KL}` of each sample's standardised logits; see :class:`LumiNet`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        alpha: α.
        temperature: τ.
        keep: (B,) bool, the samples that count; ``None`` for all. The others get loss 0.

    Returns:
        (B,)

    Example:
        The student's order of the two samples is the teacher's, then the opposite:

        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> luminet_loss(student, 5 * student, alpha=1.0, temperature=1.0).abs() < 1e-4
        tensor([True, True])
        >>> luminet_loss(student, -student, alpha=1.0, temperature=1.0)
        tensor([0.4621, 0.4621])
    """
    student, teacher = perception(student_logits, keep), perception(teacher_logits, keep)
    return alpha**2 * kl_divergence(student / temperature, teacher / temperature)


class LumiNet(Distiller):
    r"""Hossain et al., *LumiNet: The Bright Side of Perceptual Knowledge Distillation*, 2023.

    arXiv 2310.03669. Each class's logits are standardised over the batch, and the results are compared as in KD:

    .. math::
        \ell_i = \alpha^2\, \mathrm{KL}\big(\mathrm{softmax}(h^T_i/\tau) \,\|\, \mathrm{softmax}(h^S_i/\tau)\big),
        \qquad h_{ic} = \frac{z_{ic} - \mu_c}{\sqrt{\sigma_c^2 + 10^{-5}}}

    So the teacher says which samples of the batch resemble a class more than others do, and the student need not match
    the scale of its logits. Mean and variance are over the kept samples of the global batch. A dropped sample gets
    loss 0; a single one has nothing to be compared with.

    :class:`~lightning_biaskd.bias.BiasStrategy` corrects the teacher's logits before they are standardised, so a
    corrected sample also moves the mean and variance that the others are compared by.

    The defaults are those of the authors' code (ismail31416/LumiNet) for resnet32x4→resnet8x4: α 33, τ 4, a warm-up of
    20 epochs, and cross-entropy at weight 2. α and τ are tuned to the pair there.

    Args:
        alpha: α, whose square is the weight.
        temperature: τ.
        warmup_epochs: the weight grows linearly to 1 in this many epochs.
    """

    needs = Needs(pairwise=True)

    def __init__(self, alpha: float = 33.0, temperature: float = 4.0, warmup_epochs: int = 20) -> None:
        super().__init__(temperature, warmup_epochs)
        check_weights(alpha=alpha)
        self.alpha = alpha

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return luminet_loss(student.logits, teacher.logits, self.alpha, self.temperature, keep)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, {super().extra_repr()}"
