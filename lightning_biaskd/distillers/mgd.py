"""Masked generative distillation."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor, nn

from lightning_biaskd.distiller import Dense, Needs
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map, same_size
from lightning_biaskd.features.connectors import Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.randomness.bits import uniform
from lightning_biaskd.randomness.draws import Draws

Hides = Literal["channels", "positions"]


def mgd_loss(generated: Tensor, teacher: Tensor) -> Tensor:
    """The squared distance of each sample's two maps.

    Args:
        generated: (B, D, H, W).
        teacher: (B, D, H, W).

    Returns:
        (B,)

    Example:
        >>> import torch
        >>> mgd_loss(torch.zeros(1, 1, 1, 2), torch.tensor([2.0, 1.0]).view(1, 1, 1, 2))
        tensor([5.])
    """
    return (at_least_float32(generated) - at_least_float32(teacher)).square().flatten(1).sum(1)


class MGD(FeatureDistiller):
    r"""Yang, Li, Shao, Shi, Yuan, Yuan, *Masked Generative Distillation*, ECCV 2022, arXiv 2205.01529.

    Random channels or positions of the student's map are hidden, and two learned convolutions G generate the teacher's
    whole map from the others:

    .. math::
        \ell_i = \big\|G(m_i \odot a(F^S_i)) - F^T_i\big\|^2, \qquad
        m_i = 0 \text{ with probability } \lambda, \text{ otherwise } 1

    G is a convolution, ReLU and another convolution, each 3x3. The learned 1x1 convolution a is there if the maps have
    different numbers of channels. A larger map is averaged to the size of the smaller.

    The masks are a function of the run's seed, the epoch and the image's index, so a resumed run and any number of
    processes draw the same; views of the same image in a batch get the same mask.

    The defaults are those of the authors' code (yzd-v/MGD, ``cls``) for ImageNet: the last map, λ 0.15, and the loss's
    weight of 0.00007 with cross-entropy at 1. There channels are hidden for classification. For dense prediction, the
    paper hides positions: for two-stage detectors ``hides="positions"`` with λ 0.45 and the weight 0.0000005, on each
    map of the pyramid. The loss is a sum over the map, so the weight depends on its size.

    Args:
        layer: the student's feature map.
        teacher_layer: the teacher's feature map; ``None`` for the same name.
        masked: λ, the share of channels or positions that are hidden.
        hides: ``"channels"`` or ``"positions"``.

    Raises:
        UserError: a share outside [0, 1), or an unknown word; when called before ``build``, without the images'
            indices, or on features that are not maps.
    """

    needs = Needs(index=True)

    def __init__(
        self, layer: Layer = -1, teacher_layer: Layer | None = None, masked: float = 0.15, hides: Hides = "channels"
    ) -> None:
        super().__init__(layer, teacher_layer)
        if not 0 <= masked < 1:
            raise UserError(f"masked must be in [0, 1), got {masked}")
        if hides not in get_args(Hides):
            raise UserError(f"unknown hides {hides!r}: choose {' or '.join(get_args(Hides))}")
        self.masked = masked
        self.hides = hides
        self.connectors = nn.ModuleList()
        self.draws = Draws()

    @property
    def dense(self) -> Dense:
        """Maps of segmentation networks too: one loss for each image."""
        return "images"

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the convolutions."""
        ((s, t),) = self.pairs(student, teacher)
        own, channels = as_map(s).shape[1], as_map(t).shape[1]
        align = [Connector(nn.Conv2d(own, channels, 1))] if own != channels else []
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.connectors = to_device_of([*align, Connector(first, nn.ReLU(), second)], s)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        *align, generate = require_built(self.connectors)
        ((s, t),) = self.pairs(student, teacher)
        s = as_map(s)
        for connector in align:
            s = connector(s)
        s, t = same_size(s, t)
        shape = (s.shape[1], 1, 1) if self.hides == "channels" else (1, *s.shape[2:])
        visible = uniform(self.draws(student.index, math.prod(shape))) >= self.masked
        return mgd_loss(generate(s * visible.view(-1, *shape)), t)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.draws.set_epoch(epoch)

    def extra_repr(self) -> str:
        hides = "" if self.hides == "channels" else f", hides={self.hides!r}"
        return f"{super().extra_repr()}, masked={self.masked}{hides}"
