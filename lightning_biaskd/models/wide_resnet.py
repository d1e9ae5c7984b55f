"""Wide ResNets: few layers with many channels, and batch norm and ReLU before each convolution."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.models.initialization import he_convolutions


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice. A projection takes the activated input, an identity the raw."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        # the checkpoints' spelling
        self.convShortcut: nn.Module | None = None
        if in_planes != planes:
            self.convShortcut = nn.Conv2d(in_planes, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideResNet(nn.Module):
    """Zagoruyko, Komodakis, *Wide Residual Networks*, 2016, arXiv 1605.07146.

    It takes images of any size. The state-dict names match the published checkpoints.

    Args:
        depth: 6n + 4 layers: 16, 40.
        widen_factor: multiplies the channels 16, 32 and 64 of the three stages.
        num_classes: C, the number of classes.
        in_channels: of the image.

    Raises:
        UserError: a depth that is not 6n + 4.

    Shape:
        (B, in_channels, H, W) to (B, C).
    """

    def __init__(self, depth: int = 16, widen_factor: int = 2, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"depth must be 6n + 4 (10, 16, 22, …), got {depth}")
        blocks = (depth - 4) // 6
        first, second, third = (widen_factor * planes for planes in (16, 32, 64))
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.block1 = _stage(16, first, blocks, stride=1)
        self.block2 = _stage(first, second, blocks, stride=2)
        self.block3 = _stage(second, third, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.relu = nn.ReLU()  # a module, so that it can be tapped
        self.fc = nn.Linear(third, num_classes)
        he_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, image: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(image))))
        x = self.relu(self.bn1(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    layer = nn.Sequential(
        PreActivationBlock(in_planes, planes, stride),
        *(PreActivationBlock(planes, planes, 1) for _ in range(blocks - 1)),
    )
    return nn.Sequential(OrderedDict(layer=layer))


def wrn_16_1(num_classes: int = 100, in_channels: int = 3) -> WideResNet:
    """WRN-16-1; see :class:`WideResNet`."""
    return WideResNet(16, 1, num_classes, in_channels)


def wrn_16_2(num_classes: int = 100, in_channels: int = 3) -> WideResNet:
    """WRN-16-2; see :class:`WideResNet`."""
    return WideResNet(16, 2, num_classes, in_channels)


def wrn_40_1(num_classes: int = 100, in_channels: int = 3) -> WideResNet:
    """WRN-40-1; see :class:`WideResNet`."""
    return WideResNet(40, 1, num_classes, in_channels)


def wrn_40_2(num_classes: int = 100, in_channels: int = 3) -> WideResNet:
    """WRN-40-2; see :class:`WideResNet`."""
    return WideResNet(40, 2, num_classes, in_channels)
