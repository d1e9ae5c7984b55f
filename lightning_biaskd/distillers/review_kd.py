"""Knowledge review."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.distiller import Needs
from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map, embeddings, layer_names
from lightning_biaskd.features.connectors import BatchNorm2d, Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_SIDES = (4, 2, 1)


def review_kd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The hierarchical context loss of each sample: squared differences at several resolutions; see :class:`ReviewKD`.

    Args:
        student: (B, D, H, W).
        teacher: the same shape.

    Returns:
        (B,)

    Example:
        The two maps differ, but their averages do not:

        >>> student = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 2)
        >>> review_kd_loss(student, torch.zeros(1, 1, 2, 2))
        tensor([0.6667])
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    gap = student - teacher  # averaging is linear
    losses: list[Tensor] = [gap.square().flatten(1).mean(1)]
    for side in _SIDES:
        if side < gap.shape[2]:
            losses.append(F.adaptive_avg_pool2d(gap, side).square().flatten(1).mean(1) / 2 ** len(losses))
    return torch.stack(losses).sum(0) / (2 - 0.5 ** (len(losses) - 1))


class ReviewKD(FeatureDistiller):
    r"""Chen, Liu, Zhao, Jia, *Distilling Knowledge via Knowledge Review*, CVPR 2021, arXiv 2104.09044.

    The student's features are fused from the deepest to the first, so that each stage is taught by the teacher's stages
    up to it. With :math:`x_l` the student's feature after a 1x1 convolution, and :math:`u_{l+1}` the features fused so
    far, resized to it,

    .. math::
        u_l = a_1 x_l + a_2 u_{l+1}, \qquad (a_1, a_2) = \sigma\big(\mathrm{conv}([x_l, u_{l+1}])\big), \qquad
        \ell_i = \sum_l \mathrm{HCL}\big(\mathrm{conv}(u_l), F^T_l\big)

    over the layers and, at the deepest level, the embedding. :math:`u_l` is resized to the teacher's feature by nearest
    neighbours. HCL is a weighted mean of the mean squared differences of the maps and of their averages over 4x4,
    2x2 and 1x1 grids, as far as these are coarser than the map. The first weight is 1 and each next one half of the one
    before.

    As in the authors' code (dvlab-research/ReviewKD) and mdistiller, the teacher's features are taken before the
    activation if a layer ends in one. The fused features have as many channels as the student's embedding, at most 512.
    The weight grows over 20 epochs, from 1/20 as in mdistiller, which counts them from 1; in the authors' code from 0.
    With cross-entropy at 1, the weight is tuned to the pair: 5 for resnet32x4→resnet8x4; 0.6 to 8 elsewhere. On
    ImageNet (resnet34→18: weight 1) the layers are (-4, -3, -2, -1), the student's taken before the activation too,
    and there is no warm-up in the authors' code.

    In training, BatchNorm takes its statistics from all samples of the process, unless the Trainer has
    ``sync_batchnorm=True``. Only the student's features pass through it.

    Args:
        layers: the student's layers, by name or by stage, from the first to the deepest.
        teacher_layers: the teacher's layers, in the same order; ``None`` for the same names. Each is taken before the
            activation.
        preactivation: take the student's before the activation too.
        max_channels: the largest number of channels of the fused features.
        warmup_epochs: the weight grows linearly from ``1 / warmup_epochs`` in the first epoch to 1.

    Raises:
        UserError: when called before ``build``, or on features that are not maps.
    """

    needs = Needs(embedding=True)

    def __init__(
        self,
        layers: Layer | Sequence[Layer] = (-3, -2, -1),
        teacher_layers: Layer | Sequence[Layer] | None = None,
        preactivation: bool = False,
        max_channels: int = 512,
        warmup_epochs: int = 20,
    ) -> None:
        before = layer_names(layers if teacher_layers is None else teacher_layers, preactivation=True)
        super().__init__(layer_names(layers, preactivation), before, warmup_epochs=warmup_epochs)
        self.max_channels = max_channels
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the fusions."""
        levels = self._levels(student, teacher)
        middle = min(levels[0][0].shape[1], self.max_channels)
        fusions: list[nn.Module] = [
            _Fusion(s.shape[1], middle, t.shape[1], fuse=depth > 0) for depth, (s, t) in enumerate(levels)
        ]
        self.connectors = to_device_of(fusions, levels[0][0])

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        losses, fused = [], None
        for fusion, (s, t) in zip(require_built(self.connectors), self._levels(student, teacher), strict=True):
            expanded, fused = fusion(s, fused, t.shape[2:])
            losses.append(review_kd_loss(expanded, t))
        return torch.stack(losses).sum(0)

    def _levels(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """Maps of student and teacher from the deepest, the embedding as a map of one pixel, to the first."""
        maps = [(as_map(s), as_map(t)) for s, t in self.pairs(student, teacher)]
        own, others = embeddings(student, teacher)
        return [(own[:, :, None, None], others[:, :, None, None]), *reversed(maps)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, max_channels={self.max_channels}"


class _Fusion(nn.Module):
    """Fuses a student's map with the deeper fused maps, and returns it with the teacher's number of channels."""

    def __init__(self, channels: int, middle: int, wanted: int, fuse: bool) -> None:
        super().__init__()
        narrow = nn.Conv2d(channels, middle, 1, bias=False)
        wide = nn.Conv2d(middle, wanted, 3, padding=1, bias=False)
        for convolution in (narrow, wide):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.reduce = Connector(narrow, BatchNorm2d(middle))
        self.expand = Connector(wide, BatchNorm2d(wanted))
        self.attend = Connector(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, x: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        x = self.reduce(x)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            own, others = self.attend(torch.cat([x, deeper], dim=1)).chunk(2, dim=1)
            x = own * x + others * deeper
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.expand(x), x
