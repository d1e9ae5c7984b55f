"""Wasserstein distillation of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_biaskd.distillers.wkd import cosine_decay
from lightning_biaskd.errors import UserError, check_weights
from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map
from lightning_biaskd.features.connectors import regressor, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_EPS = 1e-5


def moments(feature: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in each cell of a grid.

    Cells are those of ``adaptive_avg_pool2d``, and variances are unbiased, plus 1e-5; in a cell of one position the
    variance is 0.

    Args:
        feature: (B, D, H, W).
        grid: cells per side.

    Returns:
        Both are (B, D, grid²).

    Example:
        >>> mean, deviation = moments(torch.tensor([1.0, 3.0, 2.0, 4.0]).view(1, 1, 2, 2), 1)
        >>> mean.item(), round(deviation.item(), 4)
        (2.5, 1.291)
    """
    means, variances = [], []
    for rows in _cells(feature.shape[2], grid):
        for columns in _cells(feature.shape[3], grid):
            cell = feature[:, :, rows, columns].flatten(2)
            means.append(cell.mean(2))
            variances.append(cell.var(2, correction=min(1, cell.shape[2] - 1)))
    return torch.stack(means, dim=2), (torch.stack(variances, dim=2) + _EPS).sqrt()


def _cells(size: int, grid: int) -> list[slice]:
    return [slice(n * size // grid, -(-(n + 1) * size // grid)) for n in range(grid)]


def wkd_feature_loss(student: Tensor, teacher: Tensor, mean_weight: float, grid: int) -> Tensor:
    """The Wasserstein distance of each sample's two maps as Gaussians; see :class:`WKDFeature`.

    Args:
        student: (B, D, H, W).
        teacher: (B, D, H', W').
        mean_weight: weight of the means; that of the standard deviations is 1.
        grid: cells per side.

    Returns:
        (B,)

    Example:
        The means differ by 2.5, the standard deviations by 1.291:

        >>> student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([1.0, 3.0, 2.0, 4.0]).view(1, 1, 2, 2)
        >>> wkd_feature_loss(student, teacher, mean_weight=1.0, grid=1)
        tensor([7.9085])
    """
    (mean_s, deviation_s), (mean_t, deviation_t) = (moments(at_least_float32(x), grid) for x in (student, teacher))
    distance = mean_weight * (mean_s - mean_t).square() + (deviation_s - deviation_t).square()
    return distance.sum(1).mean(1)


class WKDFeature(FeatureDistiller):
    r"""Lv, Yang, Li, *Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation*.

    NeurIPS 2024, arXiv 2412.08139; the method on features, WKD-F. In each of the g x g cells n of a map, a channel c is
    modelled by a Gaussian over the positions, with mean μ and standard deviation σ. The squared Wasserstein distance of
    Gaussians with diagonal covariances is

    .. math::
        \ell_i = \frac{1}{g^2} \sum_{n} \sum_c \big(w\,(\mu^S_{nc} - \mu^T_{nc})^2
            + (\sigma^S_{nc} - \sigma^T_{nc})^2\big)

    where w weighs the means. A learned convolution, BatchNorm and ReLU bring the student's map to the teacher's
    channels, see :func:`~lightning_biaskd.features.connectors.regressor`. As moments are compared, the maps may differ
    in size.

    The defaults are those of the authors' code (JiamingLv/WKD) for resnet32x4→resnet8x4: the last stage, w = 4, g = 1,
    and the loss's weight 0.08 with cross-entropy at 1. These are tuned to the pair: w = 3, g = 4 and the weight 0.3
    for wrn_40_2→ShuffleNetV1. The weight falls by a cosine to 0 from the 150th to the last of 240 epochs.
    Together with :class:`WKD` it is WKD-LF.

    In training, BatchNorm takes its statistics from all samples of the process, unless the Trainer has
    ``sync_batchnorm=True``. Only the student's features pass through it.

    Args:
        layer: the student's layer, by name or by stage.
        teacher_layer: the teacher's layer; ``None`` for the same name.
        mean_weight: w, of the means.
        grid: g, cells per side.
        decay_start: epochs after which the weight falls.
        decay_end: epoch in which the weight reaches 0; at or before ``decay_start`` for a constant weight.

    Attributes:
        decay: buffer, the factor on the loss; 1 until :meth:`Distiller.set_epoch` is called.

    Raises:
        UserError: ``grid`` is below 1; when called before ``build``, or on features that are not maps.
    """

    decay: Tensor

    def __init__(
        self,
        layer: Layer = -1,
        teacher_layer: Layer | None = None,
        mean_weight: float = 4.0,
        grid: int = 1,
        decay_start: int = 150,
        decay_end: int = 240,
    ) -> None:
        super().__init__(layer, teacher_layer)
        if grid < 1:
            raise UserError(f"grid must be at least 1, got {grid}")
        check_weights(mean_weight=mean_weight)
        self.mean_weight = mean_weight
        self.grid = grid
        self.decay_start = decay_start
        self.decay_end = decay_end
        self.connectors = nn.ModuleList()
        self.register_buffer("decay", torch.tensor(1.0), persistent=False)

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the regressor."""
        ((s, t),) = self.pairs(student, teacher)
        self.connectors = to_device_of([regressor(as_map(s), as_map(t))], s)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        (connector,) = require_built(self.connectors)
        ((s, t),) = self.pairs(student, teacher)
        return self.decay * wkd_feature_loss(connector(as_map(s)), as_map(t), self.mean_weight, self.grid)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.decay.fill_(cosine_decay(epoch, self.decay_start, self.decay_end))

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, mean_weight={self.mean_weight}, grid={self.grid}, "
            f"decay_start={self.decay_start}, decay_end={self.decay_end}"
        )
