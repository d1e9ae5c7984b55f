"""Layers that several families share."""

from __future__ import annotations

from torch import nn


def conv_bn_relu(in_planes: int, planes: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the resolution at stride 1, its batch norm and ReLU."""
    return [
        nn.Conv2d(in_planes, planes, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
    ]
