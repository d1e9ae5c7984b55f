"""ShuffleNet for small images: grouped 1x1 convolutions, and a shuffle that exchanges channels between the groups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEM = 24
_GROUPS = 3


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of ``groups`` groups; (B, D, H, W) to the same shape."""
    return torch.unflatten(x, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """A grouped 1x1 convolution, a shuffle, a 3x3 per channel, and a grouped 1x1.

    The result is added to the input; with stride 2 it is concatenated with the pooled input.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        middle = planes // 4
        # the stem is too narrow to be split
        self.groups = 1 if in_planes == _STEM else _GROUPS
        self.stride = stride
        self.conv1 = nn.Conv2d(in_planes, middle, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, planes, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()  # a module, so that its input can be tapped

    def forward(self, x: Tensor) -> Tensor:
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        activated: Tensor = self.relu(
            out + x if self.stride == 1 else torch.cat([out, F.avg_pool2d(x, 3, self.stride, 1)], dim=1)
        )
        return activated


class ShuffleNetV1(nn.Module):
    """Zhang et al., *ShuffleNet: An Extremely Efficient CNN for Mobile Devices*, 2017, arXiv 1707.01083.

    This is the variant that the distillation literature uses on CIFAR: 3 groups, a 1x1 stem, no max-pool and, unlike
    the paper, a ReLU after the convolution per channel. It takes images of any size. The state-dict names match the
    published checkpoints.

    Args:
        num_classes: C, the number of classes.
        in_channels: of the image.

    Shape:
        (B, in_channels, H, W) to (B, C).
    """

    def __init__(self, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 240, 4)
        self.layer2 = _stage(240, 480, 8)
        self.layer3 = _stage(480, 960, 4)
        self.linear = nn.Linear(960, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_planes: int, planes: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        ShuffleUnit(in_planes, planes - in_planes, 2), *(ShuffleUnit(planes, planes, 1) for _ in range(units - 1))
    )


def shufflenet_v1(num_classes: int = 100, in_channels: int = 3) -> ShuffleNetV1:
    """ShuffleNet, 3 groups, width 1; see :class:`ShuffleNetV1`."""
    return ShuffleNetV1(num_classes, in_channels)
