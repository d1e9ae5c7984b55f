"""Batch-wise augmentation on the device, reproducible from (seed, epoch, index) alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # the constants of splitmix64 (Steele, Lea, Flood, 2014), as signed 64-bit integers
_MIX1 = -0x40A7B892E31B1A47
_MIX2 = -0x6B2FB644ECCEEE15


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: int64 to int64, all bits stirred."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def random_bits(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Random 63-bit numbers, one per sample, that depend on nothing else.

    So any rank, any number of workers and any resumed run draw the same views.

    Args:
        seed: of the run.
        epoch: 0-based.
        index: (B,) int64, the sample's number in its data set.

    Returns:
        (B,) int64, not negative.

    Example:
        >>> a, b = random_bits(0, 0, torch.tensor([0, 1])), random_bits(0, 1, torch.tensor([0, 1]))
        >>> bool((a != b).all()), torch.equal(random_bits(0, 0, torch.tensor([1])), a[1:])
        (True, True)
    """
    start = _mix(torch.tensor([seed], dtype=torch.int64, device=index.device) * _GOLDEN + epoch + 1)
    return _mix(_mix(start + index) + _GOLDEN) & ((1 << 63) - 1)


def crop_and_flip(image: Tensor, bits: Tensor, padding: int, flip: bool) -> Tensor:
    """The field's augmentation of small images: zero-pad, crop at random, mirror every second one.

    Args:
        image: (B, D, H, W).
        bits: (B,) from :func:`random_bits`.
        padding: on each side, in pixels; the crop has the old size.
        flip: whether to mirror.

    Returns:
        (B, D, H, W), of the same type.
    """
    height, width = image.shape[2:]
    padded = F.pad(image, (padding,) * 4)
    offsets = 2 * padding + 1
    bits, mirrored = bits >> 1, (bits & 1).bool() & flip
    top, left = bits % offsets, (bits // offsets) % offsets
    rows = top[:, None] + torch.arange(height, device=image.device)
    steps = torch.arange(width, device=image.device)
    columns = left[:, None] + torch.where(mirrored[:, None], width - 1 - steps, steps)
    sample = torch.arange(len(image), device=image.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
