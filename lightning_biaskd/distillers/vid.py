"""Variational information distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map, same_size
from lightning_biaskd.features.connectors import Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_EPS = 1e-5


def vid_loss(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """Negative log-likelihood of each sample's teacher feature, without a constant; see :class:`VID`.

    Args:
        mean: (B, D, H, W), the expected feature.
        variance: (D,), positive.
        teacher: (B, D, H, W).

    Returns:
        (B,)

    Example:
        >>> mean, teacher = torch.zeros(2, 1, 1, 1), torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
        >>> vid_loss(mean, torch.ones(1), teacher)
        tensor([0., 2.])
    """
    variance = variance.view(-1, 1, 1)
    mean, teacher = at_least_float32(mean), at_least_float32(teacher)
    return ((mean - teacher).square() / variance + variance.log()).flatten(1).mean(1) / 2


class _Gaussian(nn.Module):
    """Predicts the teacher's map from the student's, with one variance per channel."""

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((teacher,), math.log(math.expm1(variance - _EPS))))
        layers: list[nn.Module] = []
        for width in (student, teacher, teacher):
            layers += [nn.Conv2d(width, teacher, 1, bias=False), nn.ReLU()]
        self.mean = Connector(*layers[:-1])

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = same_size(student, teacher)
        variance = F.softplus(self.log_scale.to(teacher.dtype)) + _EPS
        return vid_loss(self.mean(student), variance, teacher)


class VID(FeatureDistiller):
    r"""Ahn et al., *Variational Information Distillation for Knowledge Transfer*, CVPR 2019, arXiv 1904.05835.

    It maximises a lower bound of the mutual information of the student's and the teacher's features: the likelihood of
    the teacher's feature under a learned Gaussian. With :math:`\mu_l`, three 1x1 convolutions with ReLU between
    them, and a variance :math:`\sigma^2_{lc}` for each channel,

    .. math::
        \ell_i = \sum_l \operatorname*{mean}_{c, h, w} \frac12 \Big(
            \frac{(F^T_{ilchw} - \mu_l(F^S_{il})_{chw})^2}{\sigma^2_{lc}} + \log \sigma^2_{lc} \Big)

    The larger of two maps is averaged to the size of the smaller. Losses may be negative.

    Layers (the three stages), the Gaussian, its first variance and the loss's weight of 1 with cross-entropy at 1
    are those of RepDistiller; mdistiller has the same but does not train the variances.

    Args:
        layers: the student's layers, by name or by stage.
        teacher_layers: the teacher's layers, in the same order; ``None`` for the same names.
        variance: initial σ².

    Raises:
        UserError: a variance that is not above 1e-5; when called before ``build``, or on features that are not maps.
    """

    def __init__(
        self,
        layers: Layer | Sequence[Layer] = (-3, -2, -1),
        teacher_layers: Layer | Sequence[Layer] | None = None,
        variance: float = 5.0,
    ) -> None:
        if not variance > _EPS:
            raise UserError(f"variance must be above {_EPS}, got {variance}")
        super().__init__(layers, teacher_layers)
        self.variance = variance
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the Gaussians."""
        pairs = [(as_map(s), as_map(t)) for s, t in self.pairs(student, teacher)]
        self.connectors = to_device_of(
            [_Gaussian(s.shape[1], t.shape[1], self.variance) for s, t in pairs], pairs[0][0]
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        losses = [
            gaussian(s, t)
            for gaussian, (s, t) in zip(require_built(self.connectors), self.pairs(student, teacher), strict=True)
        ]
        return torch.stack(losses).sum(0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, variance={self.variance}"
