"""MobileNetV2 for small images, with fewer reductions of the resolution than for ImageNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.models.initialization import he_convolutions, small_linear
from lightning_biaskd.models.layers import conv_bn_relu

# expansion (None for the network's), planes, blocks, stride
_STAGES: tuple[tuple[int | None, int, int, int], ...] = (
    (1, 16, 1, 1),
    (None, 24, 2, 1),
    (None, 32, 3, 2),
    (None, 64, 4, 2),
    (None, 96, 3, 1),
    (None, 160, 3, 2),
    (None, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a 3x3 per channel, a linear 1x1 that narrows; plus the input if shapes match."""

    def __init__(self, in_planes: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_planes * expansion
        self.is_residual = stride == 1 and in_planes == planes
        self.conv = nn.Sequential(
            *conv_bn_relu(in_planes, wide, 1, 1),
            *conv_bn_relu(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.is_residual else out


class MobileNetV2(nn.Module):
    """Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, 2018, arXiv 1801.04381.

    This is the variant that the distillation literature uses on CIFAR: the resolution is reduced by 16 instead of 32,
    ReLU replaces ReLU6, and there is no dropout. It takes images of any size. The state-dict names match the published
    checkpoints.

    Args:
        width: factor for the number of channels; the 1280 before the classifier are never reduced.
        expansion: T, factor by which a block widens its input.
        num_classes: C, the number of classes.
        in_channels: of the image.

    Shape:
        (B, in_channels, H, W) to (B, C).
    """

    def __init__(self, width: float = 1.0, expansion: int = 6, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        planes = int(32 * width)
        last = int(1280 * max(width, 1.0))
        self.conv1 = nn.Sequential(*conv_bn_relu(in_channels, planes, 3, 2))
        self.blocks = nn.Sequential()
        for own_expansion, full_planes, blocks, stride in _STAGES:
            in_planes, planes = planes, int(full_planes * width)
            factor = own_expansion or expansion
            self.blocks.append(
                nn.Sequential(
                    InvertedResidual(in_planes, planes, stride, factor),
                    *(InvertedResidual(planes, planes, 1, factor) for _ in range(blocks - 1)),
                )
            )
        self.conv2 = nn.Sequential(*conv_bn_relu(planes, last, 1, 1))
        classifier = nn.Linear(last, num_classes)
        self.classifier = nn.Sequential(classifier)
        he_convolutions(self)
        small_linear(classifier)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv2(self.blocks(self.conv1(image)))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def mobilenet_v2_half(num_classes: int = 100, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 with half the width; see :class:`MobileNetV2`."""
    return MobileNetV2(0.5, 6, num_classes, in_channels)
