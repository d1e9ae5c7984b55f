"""Class attention transfer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.distiller import Needs
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map, check_average, check_positions, unit
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def class_activation_maps(feature: Tensor, weight: Tensor) -> Tensor:
    """The evidence for each class at each position.

    Args:
        feature: (B, D, H, W); the classifier reads its average.
        weight: (C, D), the classifier's.

    Returns:
        (B, C, H, W). Its average over positions gives the logits without the bias.
    """
    weight = at_least_float32(weight).to(feature.dtype)
    with torch.autocast(feature.device.type, enabled=False):
        return F.conv2d(feature, weight[:, :, None, None])


def cat_kd_loss(student: Tensor, teacher: Tensor, resolution: int, normalize: bool) -> Tensor:
    """The mean squared difference of each sample's class activation maps; see :class:`CATKD`.

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H', W').
        resolution: height and width to which they are averaged.
        normalize: scale each map to length 1.

    Returns:
        (B,)

    Example:
        >>> student = torch.tensor([3.0, 4.0]).view(1, 1, 2, 1)
        >>> teacher = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
        >>> cat_kd_loss(student, teacher, resolution=1, normalize=False)
        tensor([9.])
        >>> cat_kd_loss(student, teacher, resolution=1, normalize=True)
        tensor([0.])
    """
    student, teacher = (
        F.adaptive_avg_pool2d(at_least_float32(maps), resolution).flatten(2) for maps in (student, teacher)
    )
    if normalize:
        student, teacher = unit(student, dim=2), unit(teacher, dim=2)
    return (student - teacher).square().mean((1, 2))


class CATKD(FeatureDistiller):
    r"""Guo, Yan, Li, Lin, *Class Attention Transfer Based Knowledge Distillation*, CVPR 2023, arXiv 2304.12777.

    A class activation map :math:`A_c = \sum_d w_{cd} F_d` shows which regions support a class, with F the last feature
    map and w the weights of the classifier that reads its average. Student and teacher are compared by their maps,
    averaged to r x r:

    .. math::
        \ell_i = \frac{1}{C r^2} \sum_{chw} \big(\phi(A^S_{ic})_{hw} - \phi(A^T_{ic})_{hw}\big)^2

    with :math:`\phi` the identity, or the map scaled to length 1.

    The defaults are those of the authors' code (GzyAftermath/CAT-KD) for resnet32x4→resnet8x4: r = 2, not scaled, and
    the weight 15 with cross-entropy at 1. They are tuned to the pair: for a teacher and a student of different
    families the authors scale the maps, set r to 2 or 4, and the weight to 15 to 600 (80 for wrn_40_2→ShuffleNetV1).
    Their classifiers have no bias; here the bias does not enter the maps. Their variants with binary maps, or with maps
    of some classes only, are not implemented.

    Args:
        layer: the student's last feature map; the classifier must read its average.
        teacher_layer: the teacher's last feature map; ``None`` for the same name.
        resolution: r, cells per side.
        normalize: scale each map to length 1.

    Raises:
        UserError: the classifier is not an ``nn.Linear``, or does not read the average.
    """

    needs = Needs(embedding=True)

    def __init__(
        self,
        layer: Layer = -1,
        teacher_layer: Layer | None = None,
        resolution: int = 2,
        normalize: bool = False,
    ) -> None:
        if normalize and resolution == 1:
            raise UserError(
                "CATKD teaches nothing with one cell of length 1: raise resolution, or set normalize to false"
            )
        super().__init__(layer, teacher_layer)
        self.resolution = resolution
        self.normalize = normalize

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates nothing; refuses a map if the classifier does not read its average."""
        check_average("CATKD", student, *self.needs.layers)
        check_average("CATKD", teacher, *self.needs.teacher_layers)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        ((s, t),) = self.pairs(student, teacher)
        own = class_activation_maps(as_map(s), _weight(student))
        others = class_activation_maps(as_map(t), _weight(teacher))
        if self.normalize:
            check_positions("CATKD", own)
        return cat_kd_loss(own, others, self.resolution, self.normalize)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, resolution={self.resolution}, normalize={self.normalize}"


def _weight(outputs: Outputs) -> Tensor:
    if not isinstance(outputs.head, nn.Linear):
        raise UserError(
            f"CATKD needs the weights of a linear classifier, and got {type(outputs.head).__name__}: take a network "
            "that ends in nn.Linear, and run FeatureTap(model, layers, embedding=True)"
        )
    return outputs.head.weight
