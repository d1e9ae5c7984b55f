"""Attention transfer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, Layer, check_positions, same_size, unit
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def at_loss(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """The loss of each sample at one layer; see :class:`AT`.

    Args:
        student: (B, D, H, W), or tokens (B, N, D).
        teacher: the same, with any number of channels and any size.
        power: p, of the activations.

    Returns:
        (B,)

    Example:
        The student looks to the left, the teacher to the right:

        >>> at_loss(torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]], [[0.0, 2.0]]]]), power=2.0)
        tensor([1.])
    """
    maps = same_size(at_least_float32(student), at_least_float32(teacher))
    s, t = (unit(x.abs().pow(power).mean(1).flatten(1)) for x in maps)
    return (s - t).square().mean(1)


class AT(FeatureDistiller):
    r"""Zagoruyko, Komodakis, *Paying More Attention to Attention*, ICLR 2017, arXiv 1612.03928.

    With :math:`A_{il}` the mean over channels of :math:`|F_{il}|^p`, a vector over the positions of a layer scaled to
    length 1,

    .. math:: \ell_i = \sum_l \mathrm{mean}\big(A^S_{il} - A^T_{il}\big)^2

    The larger of two maps is averaged to the size of the smaller. The mean is over positions, as in the authors' code;
    the paper has the length of the difference instead.

    Layers (the three stages), p and the loss's weight of 1000 with cross-entropy at 1 are those of RepDistiller and
    mdistiller for CIFAR-100. As the mean is over positions, images of half the height give about four times the loss,
    so the weight suits images of 32x32.

    Args:
        layers: the student's layers, by name or by stage.
        teacher_layers: the teacher's layers, in the same order; ``None`` for the same names.
        power: p, at least 1.

    Raises:
        UserError: the power is below 1; when called on features that are not maps.
    """

    def __init__(
        self,
        layers: Layer | Sequence[Layer] = (-3, -2, -1),
        teacher_layers: Layer | Sequence[Layer] | None = None,
        power: float = 2.0,
    ) -> None:
        if not power >= 1:
            raise UserError(f"power must be at least 1, got {power}")
        super().__init__(layers, teacher_layers)
        self.power = power

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        pairs = [same_size(s, t) for s, t in self.pairs(student, teacher)]
        check_positions("AT", *(s for s, _ in pairs))
        return torch.stack([at_loss(s, t, self.power) for s, t in pairs]).sum(0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, power={self.power}"
