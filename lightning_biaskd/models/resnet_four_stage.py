"""ImageNet's ResNets with a stem for small images and the state-dict names of published CIFAR checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.models.initialization import he_convolutions


class ShortcutBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = _shortcut(in_planes, planes, stride)
        self.relu = nn.ReLU()  # a module, so that its input can be tapped

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        activated: Tensor = self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))
        return activated


class Bottleneck(nn.Module):
    """A 1x1 convolution, a 3x3 with the stride, a 1x1 to four times the channels, and a shortcut."""

    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        wide = self.expansion * planes
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.shortcut = _shortcut(in_planes, wide, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        activated: Tensor = self.relu(self.bn3(self.conv3(out)) + self.shortcut(x))
        return activated


class FourStageResNet(nn.Module):
    """He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, 2016, arXiv 1512.03385, section 4.1.

    This is the variant that the distillation literature uses on CIFAR: a 3x3 stem with stride 1 and no max-pool. It
    takes images of any size. The state-dict names match the published CIFAR checkpoints and differ from torchvision's;
    for torchvision's networks, see :func:`cifar_stem`.

    Args:
        block: the type of block in all stages.
        blocks: number of blocks in each of the four stages.
        num_classes: C, the number of classes.
        in_channels: of the image.

    Shape:
        (B, in_channels, H, W) to (B, C).
    """

    def __init__(
        self,
        block: type[ShortcutBlock] | type[Bottleneck] = ShortcutBlock,
        blocks: Sequence[int] = (2, 2, 2, 2),
        num_classes: int = 100,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        n1, n2, n3, n4 = blocks
        factor = block.expansion
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64, n1, stride=1)
        self.layer2 = _stage(block, 64 * factor, 128, n2, stride=2)
        self.layer3 = _stage(block, 128 * factor, 256, n3, stride=2)
        self.layer4 = _stage(block, 256 * factor, 512, n4, stride=2)
        self.linear = nn.Linear(512 * factor, num_classes)
        he_convolutions(self)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _shortcut(in_planes: int, planes: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_planes == planes:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


def _stage(
    block: type[ShortcutBlock] | type[Bottleneck], in_planes: int, planes: int, blocks: int, stride: int
) -> nn.Sequential:
    wide = planes * block.expansion
    return nn.Sequential(block(in_planes, planes, stride), *(block(wide, planes, 1) for _ in range(blocks - 1)))


def resnet18(num_classes: int = 100, in_channels: int = 3) -> FourStageResNet:
    """ResNet-18 with a 3x3 stem; see :class:`FourStageResNet`."""
    return FourStageResNet(ShortcutBlock, (2, 2, 2, 2), num_classes, in_channels)


def resnet34(num_classes: int = 100, in_channels: int = 3) -> FourStageResNet:
    """ResNet-34 with a 3x3 stem; see :class:`FourStageResNet`."""
    return FourStageResNet(ShortcutBlock, (3, 4, 6, 3), num_classes, in_channels)


def resnet50(num_classes: int = 100, in_channels: int = 3) -> FourStageResNet:
    """ResNet-50 with a 3x3 stem; see :class:`FourStageResNet`."""
    return FourStageResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels)
