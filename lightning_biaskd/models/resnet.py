"""The CIFAR ResNets: a 3x3 stem that keeps the resolution, three stages, named as the field's checkpoints are."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.models.initialization import he_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()  # a module, so that what it reads can be tapped
        self.downsample: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return activated


class CIFARResNet(nn.Module):
    """He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, 2016, arXiv 1512.03385, section 4.2.

    Takes images of any size from about 8x8. State-dict names are those of the checkpoints that the field shares.

    Args:
        depth: 6n + 2 layers: 8, 14, 20, 32, 44, 56, 110.
        num_classes: C, the number of classes.
        in_channels: of the image.
        widths: channels of the stem and of the three stages.

    Raises:
        ValueError: a depth that is not 6n + 2.

    Shape:
        (B, in_channels, H, W) to (B, C).
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 100,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 16, 32, 64),
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, …), got {depth}")
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.fc = nn.Linear(third, num_classes)
        he_convolutions(self)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_planes, planes, stride), *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1))
    )


_WIDE = (32, 64, 128, 256)


def resnet8(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-8; see :class:`CIFARResNet`."""
    return CIFARResNet(8, num_classes, in_channels)


def resnet14(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-14; see :class:`CIFARResNet`."""
    return CIFARResNet(14, num_classes, in_channels)


def resnet20(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-20; see :class:`CIFARResNet`."""
    return CIFARResNet(20, num_classes, in_channels)


def resnet32(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-32; see :class:`CIFARResNet`."""
    return CIFARResNet(32, num_classes, in_channels)


def resnet44(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-44; see :class:`CIFARResNet`."""
    return CIFARResNet(44, num_classes, in_channels)


def resnet56(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-56; see :class:`CIFARResNet`."""
    return CIFARResNet(56, num_classes, in_channels)


def resnet110(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-110; see :class:`CIFARResNet`."""
    return CIFARResNet(110, num_classes, in_channels)


def resnet8x4(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-8, four times as wide; see :class:`CIFARResNet`."""
    return CIFARResNet(8, num_classes, in_channels, _WIDE)


def resnet32x4(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-32, four times as wide; see :class:`CIFARResNet`."""
    return CIFARResNet(32, num_classes, in_channels, _WIDE)
