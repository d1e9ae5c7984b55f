"""Distillation by the correlation of maps, for detectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_biaskd.distributed.gather import total
from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map, same_size
from lightning_biaskd.features.connectors import Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_EPS = 1e-6


def pkd_loss(student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
    """Half the mean squared difference of each sample's two maps, whose channels are standardised over the batch.

    Args:
        student: (B, D, H, W).
        teacher: the same shape.
        keep: (B,) bool, the samples that mean and standard deviation are of; ``None`` for all.

    Returns:
        (B,)

    Example:
        >>> map = torch.arange(8.0).view(1, 2, 2, 2)
        >>> [round(pkd_loss(map, other).item(), 4) for other in (3 * map - 1, -map)]
        [0.0, 1.5]
    """
    gap = _standardised(at_least_float32(student), keep) - _standardised(at_least_float32(teacher), keep)
    return gap.square().flatten(1).mean(1) / 2


def _standardised(x: Tensor, keep: Tensor | None) -> Tensor:
    kept = torch.ones_like(x[:, :1, :1, :1]) if keep is None else keep.to(x).view(-1, 1, 1, 1)
    count = total(kept.sum() * x.shape[2:].numel())
    x = x - total((kept * x).sum((0, 2, 3), keepdim=True)) / count.clamp_min(1)
    square = total((kept * x.square()).sum((0, 2, 3), keepdim=True)) / (count - 1).clamp_min(1)
    deviation = square.where(square > 0, 1).sqrt().where(square > 0, 0)  # whose gradient is finite at 0
    return x / (deviation + _EPS)


class PKD(FeatureDistiller):
    r"""Cao et al., *PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient*.

    NeurIPS 2022, arXiv 2207.02039. Each channel of a map is standardised over the batch and all positions, to
    :math:`\hat F`:

    .. math:: \ell_i = \sum_l \tfrac12\, \mathrm{mean}\big(\hat F^S_{il} - \hat F^T_{il}\big)^2

    over channels and positions. The mean over the batch is 1 minus Pearson's correlation of the two maps' channels, so
    neither the magnitude of the maps nor a channel that dominates them matters.

    The paper distils the maps of a detector's pyramid: ``layers=["0", "1", "2", "3"]`` with
    :class:`~lightning_biaskd.DetectionDistillationModule`, at weight 6. A learned 1x1 convolution is there for maps
    with different numbers of channels, and a larger map is averaged to the size of the smaller; in the paper all have
    the same channels.

    Mean and deviation are of the images of all processes; in the authors' code (mmrazor), of those of one.

    Args:
        layers: the student's maps.
        teacher_layers: the teacher's maps, in the same order; ``None`` for the same names.

    Raises:
        UserError: when called before ``build``, or on features that are not maps.
    """

    def __init__(
        self, layers: Layer | Sequence[Layer] = (-3, -2, -1), teacher_layers: Layer | Sequence[Layer] | None = None
    ) -> None:
        super().__init__(layers, teacher_layers)
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates a convolution for each pair of maps whose numbers of channels differ."""
        pairs = [(as_map(s), as_map(t)) for s, t in self.pairs(student, teacher)]
        channels = [(s.shape[1], t.shape[1]) for s, t in pairs]
        connectors = [nn.Identity() if s == t else Connector(nn.Conv2d(s, t, 1)) for s, t in channels]
        self.connectors = to_device_of(connectors, pairs[0][0])

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        losses = []
        for connector, (s, t) in zip(require_built(self.connectors), self.pairs(student, teacher), strict=True):
            s, t = same_size(connector(as_map(s)), t)
            losses.append(pkd_loss(s, t, keep))
        return torch.stack(losses).sum(0)
