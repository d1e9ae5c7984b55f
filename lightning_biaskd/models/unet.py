"""U-Nets, for a class at each pixel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.models.initialization import he_convolutions


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Ronneberger, Fischer, Brox, *U-Net: Convolutional Networks for Biomedical Image Segmentation*, MICCAI 2015.

    arXiv 1505.04597. It differs from the published network in three points that are common today: convolutions are
    padded, so that the map has the size of the image; they are batch-normalised; and maps are enlarged by bilinear
    interpolation. Images may have any height and width.

    Args:
        num_classes: C.
        widths: channels of each stage, from full resolution down; each stage halves height and width.
        in_channels: of the images.

    Example:
        >>> UNet(11, widths=(8, 16))(torch.zeros(2, 3, 45, 60)).shape
        torch.Size([2, 11, 45, 60])
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = (64, 128, 256, 512), in_channels: int = 3) -> None:
        super().__init__()
        inputs = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(_convolutions(*channels) for channels in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(_convolutions(wide + narrow, narrow) for narrow, wide in itertools.pairwise(widths))
        self.classifier = nn.Conv2d(widths[0], num_classes, 1)
        he_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C, H, W) of images (B, D, H, W)."""
        kept: list[Tensor] = []
        for stage in self.down:
            x = stage(F.max_pool2d(x, 2, ceil_mode=True) if kept else x)
            kept.append(x)
        for stage, skipped in zip(reversed(self.up), kept[-2::-1], strict=True):
            x = F.interpolate(x, skipped.shape[2:], mode="bilinear", align_corners=False)
            x = stage(torch.cat([x, skipped], 1))
        logits: Tensor = self.classifier(x)
        return logits
