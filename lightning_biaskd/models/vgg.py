"""VGG for small images, with batch norm after each convolution and one linear layer as classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.models.initialization import he_convolutions, small_linear

_PLANES = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Simonyan, Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition*, 2014, arXiv 1409.1556.

    Five blocks of 3x3 convolutions. A max-pool halves the resolution after each of the first three blocks, and after
    the fourth if the image has 64 rows or more. The output of the last block is averaged over all positions, so the
    network takes images of any size from 8x8. The state-dict names match the published checkpoints.

    Args:
        convolutions: number of convolutions in each of the five blocks.
        num_classes: C, the number of classes.
        in_channels: of the image.

    Shape:
        (B, in_channels, H, W) to (B, C).
    """

    def __init__(
        self, convolutions: Sequence[int] = (1, 1, 1, 1, 1), num_classes: int = 100, in_channels: int = 3
    ) -> None:
        super().__init__()
        n0, n1, n2, n3, n4 = convolutions
        c0, c1, c2, c3, c4 = _PLANES
        self.block0 = _block(in_channels, c0, n0)
        self.block1 = _block(c0, c1, n1)
        self.block2 = _block(c1, c2, n2)
        self.block3 = _block(c2, c3, n3)
        self.block4 = _block(c3, c4, n4)
        self.classifier = nn.Linear(c4, num_classes)
        he_convolutions(self)
        small_linear(self.classifier)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(self.block0(image), 2)
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        x = self.block3(x)
        if image.shape[2] >= 64:
            x = F.max_pool2d(x, 2)
        x = self.block4(x)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _block(in_planes: int, planes: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        layers += [nn.Conv2d(planes if index else in_planes, planes, 3, padding=1), nn.BatchNorm2d(planes), nn.ReLU()]
    return nn.Sequential(*layers)


def vgg8(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG-8; see :class:`VGG`."""
    return VGG((1, 1, 1, 1, 1), num_classes, in_channels)


def vgg11(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG-11, configuration A; see :class:`VGG`."""
    return VGG((1, 1, 2, 2, 2), num_classes, in_channels)


def vgg13(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG-13, configuration B; see :class:`VGG`."""
    return VGG((2, 2, 2, 2, 2), num_classes, in_channels)


def vgg16(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG-16, configuration D; see :class:`VGG`."""
    return VGG((2, 2, 3, 3, 3), num_classes, in_channels)


def vgg19(num_classes: int = 100, in_channels: int = 3) -> VGG:
    """VGG-19, configuration E; see :class:`VGG`."""
    return VGG((2, 2, 4, 4, 4), num_classes, in_channels)
