"""Similarity-preserving distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_biaskd.distiller import Needs
from lightning_biaskd.features.base import FeatureDistiller, Layer, full_matmul, pairs_kept, unit
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def sp_loss(student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
    """The similarity loss of one layer, divided among the samples; see :class:`SP`.

    Args:
        student: (B, …).
        teacher: (B, …).
        keep: (B,) bool, the samples that count; ``None`` for all. The others get loss 0.

    Returns:
        (B,). The mean over the kept samples is the published loss of these samples alone.

    Example:
        The student's two samples are equal, the teacher's are orthogonal:

        >>> s, t = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> sp_loss(s, t)
        tensor([0.2929, 0.2929])
        >>> sp_loss(s, t, keep=torch.tensor([True, False]))
        tensor([0., 0.])
    """
    pairs, count = pairs_kept(student, keep)

    def similarity(x: Tensor) -> Tensor:
        rows = at_least_float32(x).flatten(1)
        return unit(torch.where(pairs, full_matmul(rows, rows.T), 0))

    gaps = (similarity(teacher) - similarity(student)).square()
    return (gaps.sum(0) + gaps.sum(1)) / (2 * count.clamp_min(1))


class SP(FeatureDistiller):
    r"""Tung, Mori, *Similarity-Preserving Knowledge Distillation*, ICCV 2019, arXiv 1907.09682.

    With :math:`G = F F^\top` (B, B) for the features (B, D) of a layer, and :math:`\tilde G` the same with each row
    scaled to length 1,

    .. math:: L = \sum_l \frac{1}{B^2} \big\|\tilde G^T_l - \tilde G^S_l\big\|_F^2

    Each sample gets half of the terms of its pairs, so that the mean of the losses is L. With ``keep``, rows are scaled
    over the kept samples, and the mean over these is L of them alone. Under DDP the batch is the global batch.

    Layer (the last map, flattened) and the loss's weight of 3000 with cross-entropy at 1 are those of RepDistiller,
    which the authors verified, and mdistiller. (torchdistill scales each row to a sum of 1 instead.)

    Args:
        layers: the student's layers, by name or by stage.
        teacher_layers: the teacher's layers, in the same order; ``None`` for the same names.
    """

    needs = Needs(pairwise=True)

    def __init__(
        self, layers: Layer | Sequence[Layer] = (-1,), teacher_layers: Layer | Sequence[Layer] | None = None
    ) -> None:
        super().__init__(layers, teacher_layers)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return torch.stack([sp_loss(s, t, keep) for s, t in self.pairs(student, teacher)]).sum(0)
