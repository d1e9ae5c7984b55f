"""The CIFAR ResNets: a 3x3 stem that keeps the resolution and three stages, with the names of published checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.models.initialization import he_convolutions

Shortcut = Literal["A", "B"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int, shortcut: Shortcut = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()  # a module, so that its input can be tapped
        self.downsample: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            projection = nn.Conv2d(in_planes, planes, 1, stride, bias=False)
            self.downsample = (
                nn.Sequential(projection, nn.BatchNorm2d(planes))
                if shortcut == "B"
                else Pad(stride, planes - in_planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return activated


class Pad(nn.Module):
    """The shortcut without parameters: it subsamples the image and pads the channels with zeros on both sides."""

    def __init__(self, stride: int, channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = channels // 2, channels - channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, channels={self.before}+{self.after}"


class CIFARResNet(nn.Module):
    """He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, 2016, arXiv 1512.03385, section 4.2.

    It takes images of any size from about 8x8. The state-dict names match the published checkpoints. With option B,
    these are RepDistiller's and Chen's CIFAR networks. With option A, the classifier is named ``linear``, and they are
    Idelbayev's CIFAR-10 networks (``resnet20-12fca82f.th`` and so on).

    Args:
        depth: 6n + 2 layers: 8, 14, 20, 32, 44, 56, 110.
        num_classes: C, the number of classes.
        in_channels: of the image.
        widths: channels of the stem and of the three stages.
        shortcut: what to do where the resolution changes. ``"A"`` subsamples and pads with zeros, as the paper does on
            CIFAR-10; ``"B"`` is a 1x1 convolution with batch norm.

    Raises:
        UserError: a depth that is not 6n + 2, or another shortcut.

    Shape:
        (B, in_channels, H, W) to (B, C).
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 100,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 16, 32, 64),
        shortcut: Shortcut = "B",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"depth must be 6n + 2 (8, 14, 20, …), got {depth}")
        if shortcut not in ("A", "B"):
            raise UserError(f"shortcut must be 'A' (padding) or 'B' (1x1 convolution), got {shortcut!r}")
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, first, blocks, stride=1, shortcut=shortcut)
        self.layer2 = _stage(first, second, blocks, stride=2, shortcut=shortcut)
        self.layer3 = _stage(second, third, blocks, stride=2, shortcut=shortcut)
        self.classifier = "linear" if shortcut == "A" else "fc"
        self.add_module(self.classifier, nn.Linear(third, num_classes))
        he_convolutions(self)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = getattr(self, self.classifier)(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_planes: int, planes: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


_WIDE = (32, 64, 128, 256)


def resnet8(num_classes: int = 100, in_channels: int = 3, shortcut: Shortcut = "B") -> CIFARResNet:
    """ResNet-8; see :class:`CIFARResNet`."""
    return CIFARResNet(8, num_classes, in_channels, shortcut=shortcut)


def resnet14(num_classes: int = 100, in_channels: int = 3, shortcut: Shortcut = "B") -> CIFARResNet:
    """ResNet-14; see :class:`CIFARResNet`."""
    return CIFARResNet(14, num_classes, in_channels, shortcut=shortcut)


def resnet20(num_classes: int = 100, in_channels: int = 3, shortcut: Shortcut = "B") -> CIFARResNet:
    """ResNet-20; see :class:`CIFARResNet`."""
    return CIFARResNet(20, num_classes, in_channels, shortcut=shortcut)


def resnet32(num_classes: int = 100, in_channels: int = 3, shortcut: Shortcut = "B") -> CIFARResNet:
    """ResNet-32; see :class:`CIFARResNet`."""
    return CIFARResNet(32, num_classes, in_channels, shortcut=shortcut)


def resnet44(num_classes: int = 100, in_channels: int = 3, shortcut: Shortcut = "B") -> CIFARResNet:
    """ResNet-44; see :class:`CIFARResNet`."""
    return CIFARResNet(44, num_classes, in_channels, shortcut=shortcut)


def resnet56(num_classes: int = 100, in_channels: int = 3, shortcut: Shortcut = "B") -> CIFARResNet:
    """ResNet-56; see :class:`CIFARResNet`."""
    return CIFARResNet(56, num_classes, in_channels, shortcut=shortcut)


def resnet110(num_classes: int = 100, in_channels: int = 3, shortcut: Shortcut = "B") -> CIFARResNet:
    """ResNet-110; see :class:`CIFARResNet`."""
    return CIFARResNet(110, num_classes, in_channels, shortcut=shortcut)


def resnet8x4(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-8, four times as wide; see :class:`CIFARResNet`."""
    return CIFARResNet(8, num_classes, in_channels, _WIDE)


def resnet32x4(num_classes: int = 100, in_channels: int = 3) -> CIFARResNet:
    """ResNet-32, four times as wide; see :class:`CIFARResNet`."""
    return CIFARResNet(32, num_classes, in_channels, _WIDE)
