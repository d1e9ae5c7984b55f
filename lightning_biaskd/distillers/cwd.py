"""Channel-wise distillation, for maps."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_biaskd.distiller import Dense, Distiller
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def cwd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float, keep: Tensor | None = None) -> Tensor:
    r"""The channel-wise loss, divided among the positions; see :class:`CWD`.

    Args:
        student_logits: (B, C, …).
        teacher_logits: (B, C, …).
        temperature: τ.
        keep: (B, …) bool, the positions that count; ``None`` for all. The others get loss 0.

    Returns:
        (B, …). The mean over the kept positions of an image is the published loss of that image.

    Example:
        One channel and two positions: the student spreads its attention evenly, the teacher 3 : 1.

        >>> even, teacher = torch.zeros(1, 1, 2), torch.tensor([[[3.0, 1.0]]]).log()
        >>> loss = cwd_loss(even, teacher, temperature=1.0)
        >>> [round(value, 4) for value in (*loss[0].tolist(), loss.mean().item())]
        [0.1082, 0.1534, 0.1308]
    """
    z_s, z_t = (at_least_float32(logits).flatten(2) / temperature for logits in (student_logits, teacher_logits))
    kept = torch.ones_like(z_s[:, :1], dtype=torch.bool) if keep is None else keep.flatten(1).unsqueeze(1)
    log_s, log_t = (_log_softmax(z, kept) for z in (z_s, z_t))
    p_s, p_t = log_s.exp(), log_t.exp()
    divergence = torch.where(kept, p_t * (log_t - log_s) - p_t + p_s, 0).mean(1)
    losses = temperature**2 * kept.sum(2) * divergence
    return losses.view(len(z_s), *student_logits.shape[2:])


def _log_softmax(z: Tensor, kept: Tensor) -> Tensor:
    """Over the kept positions; finite elsewhere, also where none is kept."""
    lowest = torch.finfo(z.dtype).min / 4
    z = torch.where(kept, z, lowest)
    return torch.where(kept, z - z.logsumexp(2, keepdim=True), 0)


class CWD(Distiller):
    r"""Shu, Liu, Gao, Yan, Shen, *Channel-wise Knowledge Distillation for Dense Prediction*, ICCV 2021.

    arXiv 2011.13256.

    Each channel of the logits, a map of one class, becomes a distribution over the positions of an image,
    :math:`\phi_{cj} = \mathrm{softmax}_j(z_{cj} / \tau)`:

    .. math:: L = \frac{\tau^2}{C} \sum_c \sum_j \phi^T_{cj} \log \frac{\phi^T_{cj}}{\phi^S_{cj}}

    Both distributions sum to 1, so the loss divides among the n positions without a negative part:

    .. math:: \ell_j = n\,\frac{\tau^2}{C} \sum_c \Big(\phi^T_{cj} \log \frac{\phi^T_{cj}}{\phi^S_{cj}}
        - \phi^T_{cj} + \phi^S_{cj}\Big)

    and :class:`~lightning_biaskd.bias.BiasStrategy` can weigh right and wrong pixels separately. Dropped pixels, and
    those without a label, leave the softmax. The logits must be maps: with (B, C) there are no positions.

    The paper adds it to the cross-entropy at weight 3, with τ = 4.

    Args:
        temperature: τ.

    Raises:
        UserError: logits (B, C).
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__(temperature)

    @property
    def dense(self) -> Dense:
        """The softmax is over the map."""
        return "maps"

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        if student.logits.ndim < 3:
            raise UserError(
                "CWD compares the positions of a map, and these logits are (B, C): choose KD, or a network that gives "
                "a map for each class"
            )
        return cwd_loss(student.logits, teacher.logits, self.temperature, keep)
