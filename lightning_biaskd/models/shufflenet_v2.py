"""ShuffleNetV2 for small images: a unit transforms half of the channels, then shuffles all of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.models.shufflenet_v1 import channel_shuffle


class SplitUnit(nn.Module):
    """Sends half of the channels through a 1x1, a 3x3 per channel and a 1x1, then shuffles both halves."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        half = planes // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)))
        return channel_shuffle(torch.cat([kept, out], dim=1), 2)


class DownUnit(nn.Module):
    """Halves the resolution in two branches, each with half of the new channels, and shuffles them."""

    def __init__(self, in_planes: int, planes: int) -> None:
        super().__init__()
        half = planes // 2
        self.conv1 = nn.Conv2d(in_planes, in_planes, 3, 2, 1, groups=in_planes, bias=False)
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv2 = nn.Conv2d(in_planes, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_planes, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        short = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        long = F.relu(self.bn3(self.conv3(x)))
        long = self.bn4(self.conv4(long))
        long = F.relu(self.bn5(self.conv5(long)))
        return channel_shuffle(torch.cat([short, long], dim=1), 2)


class ShuffleNetV2(nn.Module):
    """Ma et al., *ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design*, 2018, arXiv 1807.11164.

    This is the variant that the distillation literature uses on CIFAR: a 1x1 stem, no max-pool, and one more unit in
    each stage. It takes images of any size. The state-dict names match the published checkpoints.

    Args:
        num_classes: C, the number of classes.
        in_channels: of the image.

    Shape:
        (B, in_channels, H, W) to (B, C).
    """

    def __init__(self, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = _stage(24, 116, 3)
        self.layer2 = _stage(116, 232, 7)
        self.layer3 = _stage(232, 464, 3)
        self.conv2 = nn.Conv2d(464, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.relu = nn.ReLU()  # a module, so that it can be tapped
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_planes: int, planes: int, units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(in_planes, planes), *(SplitUnit(planes) for _ in range(units)))


def shufflenet_v2(num_classes: int = 100, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2, size 1; see :class:`ShuffleNetV2`."""
    return ShuffleNetV2(num_classes, in_channels)
