"""Hint-based training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map, same_size
from lightning_biaskd.features.connectors import regressor, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of each sample's two features; see :class:`FitNet`.

    Args:
        student: (B, …).
        teacher: the same shape.

    Returns:
        (B,)

    Example:
        >>> hint_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        tensor([2., 0.])
    """
    return (at_least_float32(student) - at_least_float32(teacher)).square().flatten(1).mean(1)


class FitNet(FeatureDistiller):
    r"""Romero et al., *FitNets: Hints for Thin Deep Nets*, ICLR 2015, arXiv 1412.6550.

    .. math:: \ell_i = \sum_l \mathrm{mean}\big(r_l(F^S_{il}) - F^T_{il}\big)^2

    over channels and positions, with :math:`r_l` learned: a convolution, BatchNorm and ReLU, see
    :func:`~lightning_biaskd.features.connectors.regressor`.

    Layer, regressor and the loss's weight of 100 with cross-entropy at 1 are those of RepDistiller and mdistiller,
    which train with the hint and the labels together; the paper first trains the lower half of the student with the
    hint alone.

    In training, BatchNorm normalises the *student's* feature with the mean and variance of all samples of the batch,
    also of dropped ones, as the student itself does. The teacher's features do not pass through it.

    Args:
        layers: the student's layers, by name or by stage.
        teacher_layers: the teacher's layers, in the same order; ``None`` for the same names.

    Raises:
        UserError: when called before ``build``, or on features that are not maps.
    """

    def __init__(
        self, layers: Layer | Sequence[Layer] = (-2,), teacher_layers: Layer | Sequence[Layer] | None = None
    ) -> None:
        super().__init__(layers, teacher_layers)
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the regressors."""
        pairs = list(self.pairs(student, teacher))
        self.connectors = to_device_of([regressor(as_map(s), as_map(t)) for s, t in pairs], pairs[0][0])

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        losses = [
            hint_loss(*same_size(connector(as_map(s)), t))
            for connector, (s, t) in zip(require_built(self.connectors), self.pairs(student, teacher), strict=True)
        ]
        return torch.stack(losses).sum(0)
