"""Neuron selectivity transfer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_biaskd.features.base import FeatureDistiller, Layer, check_positions, full_matmul, same_size, unit
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def _mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared product of each of the rows (B, M, P) with each of (B, N, P), by the smaller matrices."""
    if a.shape[2] < min(a.shape[1], b.shape[1]):
        return (full_matmul(a.mT, a) * full_matmul(b.mT, b)).sum((1, 2)) / (a.shape[1] * b.shape[1])
    return full_matmul(a, b.mT).square().mean((1, 2))


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of each sample at one layer; see :class:`NST`.

    Args:
        student: (B, D, H, W), or tokens (B, N, D).
        teacher: the same, with any number of channels and any size.

    Returns:
        (B,)

    Example:
        Both channels of the student are active on the left; one of the teacher's is active on the left, one on the
        right:

        >>> student = torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]]]])
        >>> teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> nst_loss(student, teacher)
        tensor([0.5000])
    """
    maps = same_size(at_least_float32(student), at_least_float32(teacher))
    s, t = (unit(x.flatten(2), dim=2) for x in maps)
    return _mean_kernel(t, t) + _mean_kernel(s, s) - 2 * _mean_kernel(s, t)


class NST(FeatureDistiller):
    r"""Huang, Wang, *Like What You Like: Knowledge Distill via Neuron Selectivity Transfer*, 2017, arXiv 1707.01219.

    A channel's map, scaled to length 1, is a sample of what neurons select: :math:`f_{ic}` for channel c of sample i.
    The squared maximum mean discrepancy between the samples of student and teacher, by the kernel
    :math:`k(x, y) = (x^\top y)^2`, is

    .. math::
        \ell_i = \sum_l \Big( \operatorname*{mean}_{c, c'} k(f^T_{ic}, f^T_{ic'})
            + \operatorname*{mean}_{c, c'} k(f^S_{ic}, f^S_{ic'})
            - 2 \operatorname*{mean}_{c, c'} k(f^S_{ic}, f^T_{ic'}) \Big)

    The larger of two maps is averaged to the size of the smaller.

    Layers (the three stages) and the loss's weight of 50 with cross-entropy at 1 are those of RepDistiller and
    mdistiller.

    Args:
        layers: the student's layers, by name or by stage.
        teacher_layers: the teacher's layers, in the same order; ``None`` for the same names.

    Raises:
        UserError: when called on features that are not maps.
    """

    def __init__(
        self, layers: Layer | Sequence[Layer] = (-3, -2, -1), teacher_layers: Layer | Sequence[Layer] | None = None
    ) -> None:
        super().__init__(layers, teacher_layers)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        pairs = [same_size(s, t) for s, t in self.pairs(student, teacher)]
        check_positions("NST", *(s for s, _ in pairs))
        return torch.stack([nst_loss(s, t) for s, t in pairs]).sum(0)
