"""Overhaul of feature distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map
from lightning_biaskd.features.connectors import BatchNorm2d, Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def ofd_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """The partial squared distance of each sample's two maps; see :class:`OFD`.

    Args:
        student: (B, D, H, W).
        teacher: (B, D, H, W), before the activation.
        margin: (D,), not positive.

    Returns:
        (B,)

    Example:
        The targets are 2, any value below -1, and any value below -1:

        >>> teacher, margin = torch.tensor([2.0, -5.0, -5.0]).view(1, 1, 3, 1), torch.tensor([-1.0])
        >>> ofd_loss(torch.tensor([1.0, 1.0, -3.0]).view(1, 1, 3, 1), teacher, margin)
        tensor([5.])
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    sought = teacher.maximum(margin.to(teacher.dtype).view(-1, 1, 1))
    counts = (student > sought) | (teacher > 0)
    return torch.where(counts, (student - sought).square(), 0).flatten(1).sum(1)


def negative_mean(feature: Tensor) -> Tensor:
    """The mean of the negative responses of each channel, 0 if there are none; (B, D, H, W) to (D,).

    Example:
        >>> negative_mean(torch.tensor([-1.0, 4.0, -3.0, 2.0]).view(1, 2, 2, 1))
        tensor([-1., -3.])
    """
    below = (feature < 0).sum((0, 2, 3))
    return feature.clamp_max(0).sum((0, 2, 3)) / below.clamp_min(1)


class OFD(FeatureDistiller):
    r"""Heo, Kim, Yun, Park, Kwak, Choi, *A Comprehensive Overhaul of Feature Distillation*, ICCV 2019.

    arXiv 1904.01866. Maps are compared before the activation, where the teacher's are also negative. A negative
    response is not imitated; the student only has to be as low as the margin :math:`m_c` of its channel:

    .. math::
        \ell_i = \sum_{l=1}^L 2^{l-L} \sum_{chw} \big(r_l(F^S_{il}) - \max(F^T_{il}, m_l)\big)^2

    where a position counts if :math:`F^T > 0` or if the student is above its target. :math:`r_l` is
    learned: a 1x1 convolution and BatchNorm. The teacher's map is averaged to the size of the student's.

    :math:`m_c` is the expected negative response. The authors compute it from the BatchNorm before the activation and
    assume Gaussian outputs. Here it is the mean of the negative responses to the images of the rehearsal (at most 64 in
    a fit), which works with any network, and it is saved in the checkpoint. Given the margins, the loss is that of the
    authors' code (clovaai/overhaul-distillation) and of mdistiller. Layers (the three stages) and the loss's weight of
    0.001 with cross-entropy at 1 are also theirs; on ImageNet it is 0.0001.

    In training, BatchNorm takes its statistics from all samples of the process, unless the Trainer has
    ``sync_batchnorm=True``. Only the student's features pass through it.

    Args:
        layers: the student's layers, by name or by stage.
        teacher_layers: the teacher's layers, in the same order; ``None`` for the same names.

    Raises:
        UserError: when called before ``build``, or on features that are not maps.
    """

    def __init__(
        self, layers: Layer | Sequence[Layer] = (-3, -2, -1), teacher_layers: Layer | Sequence[Layer] | None = None
    ) -> None:
        super().__init__(layers, teacher_layers, preactivation=True)
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the connectors and measures the margins."""
        pairs = [(as_map(s), as_map(t)) for s, t in self.pairs(student, teacher)]
        self.connectors = to_device_of([_Stage(s, t) for s, t in pairs], pairs[0][0])

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        stages = require_built(self.connectors)
        pairs = self.pairs(student, teacher)
        losses = [stage(as_map(s), as_map(t)) for stage, (s, t) in zip(stages, pairs, strict=True)]
        return torch.stack([loss / 2 ** (len(losses) - n) for n, loss in enumerate(losses, start=1)]).sum(0)


class _Stage(nn.Module):
    """A connector and the margins of the teacher's channels."""

    margin: Tensor

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        channels = teacher.shape[1]
        convolution = nn.Conv2d(student.shape[1], channels, 1, bias=False)
        nn.init.normal_(convolution.weight, std=math.sqrt(2 / channels))
        self.connector = Connector(convolution, BatchNorm2d(channels))
        self.register_buffer("margin", negative_mean(teacher))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student = self.connector(student)
        height, width = student.shape[2:]
        return ofd_loss(student, F.adaptive_avg_pool2d(teacher, (height, width)), self.margin)
