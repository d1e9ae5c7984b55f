"""Correction of the student's own output."""

from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.logits import kl_divergence
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def rc_loss(student_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    r"""The divergence of each sample from the student's own corrected output; see :class:`RC`.

    Args:
        student_logits: (B, C).
        target: (B,) labels.
        temperature: τ.

    Returns:
        (B,)

    Example:
        >>> import torch
        >>> rc_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([1]), temperature=1.0)  # corrected: (2, 2)
        tensor([0.4338])
    """
    logits = at_least_float32(student_logits)
    own, y = logits.detach(), target.unsqueeze(1)
    corrected = own.scatter_add(1, y, own.amax(1, keepdim=True))
    return temperature**2 * kl_divergence(logits / temperature, corrected / temperature)


class RC(Distiller):
    r"""The student's own output, corrected by the label, as its teacher.

    .. math::
        \ell_i = \tau^2\, \mathrm{KL}(\mathrm{softmax}(\tilde z_i/\tau) \,\|\, \mathrm{softmax}(z^S_i/\tau)), \qquad
        \tilde z_{ic} = z^S_{ic} + [c = y_i] \max_k z^S_{ik}

    where :math:`\tilde z` has no gradient. The source is the baseline ``RC`` in the authors' code of RLD (zju-SWJ/RLD;
    Sun et al., arXiv 2408.07703). We could not find the paper that first proposed it, so the formula rests on that code
    alone. There it is the third term of

    .. math:: L = \mathrm{CE} + L_{KD} + 0.1\, L_{RC}

    at τ = 4 throughout: ``WeightedSum([(KD(), 1.0), (RC(), 0.1)])`` with both weights of the module at 1. If all of
    the student's logits are negative, the correction lowers the label instead, as in the source.

    RC does not read the teacher; it corrects the student's mistakes. :class:`~lightning_biaskd.bias.BiasStrategy`
    therefore does not change it in any mode and weighs all samples equally. A KD in the same sum is treated by the
    mode. For the published method set ``bias=None``.

    Args:
        temperature: τ; 4 in that code.
    """

    reads = "nothing"

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__(temperature)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return rc_loss(student.logits, target, self.temperature)
