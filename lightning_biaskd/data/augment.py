"""Augmentation on the device, reproducible from (seed, epoch, index) alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.randomness.bits import further_bits, uniform


@cache
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers (D, 1, 1), copied to a device once, as a copy to a GPU waits for it."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def crop_and_flip(image: Tensor, bits: Tensor, padding: int, flip: bool) -> Tensor:
    """The usual augmentation of small images: pad with zeros, crop at random, mirror half of them.

    The crops are gathered row by row, without Python code per image.

    Args:
        image: (B, D, H, W).
        bits: (B,) from :func:`random_bits`. Bit 0 mirrors and the other bits shift; :func:`count_views` gives the
            number of views.
        padding: on each side, in pixels; the crop has the size of the image.
        flip: whether to mirror.

    Returns:
        (B, D, H, W), of the same type, in channels-last memory.
    """
    size, depth, height, width = image.shape
    rows = F.pad(image.permute(0, 2, 3, 1).reshape(size, height, -1), (padding * depth,) * 2 + (padding,) * 2)
    offsets = 2 * padding + 1
    top, left = (bits >> 1) % offsets, (bits >> 1) // offsets % offsets
    index = torch.arange(size, device=image.device)
    starts = ((index * rows.shape[1] + top) * rows.shape[2] + left * depth)[:, None]
    starts = starts + rows.shape[2] * torch.arange(height, device=image.device)
    windows = rows.flatten().as_strided((rows.numel() - width * depth + 1, width * depth), (1, 1))
    crop = windows.index_select(0, starts.flatten()).view(size, height, width, depth).permute(0, 3, 1, 2)
    if flip:
        both = torch.cat([crop, crop.flip(3)]).permute(0, 2, 3, 1).reshape(2 * size, -1)
        chosen = both.index_select(0, index + size * (bits & 1))
        crop = chosen.view(size, height, width, depth).permute(0, 3, 1, 2)
    return crop


def scale_and_crop(
    image: Tensor,
    target: Tensor,
    bits: Tensor,
    scale: tuple[float, float],
    flip: bool,
    mean: Sequence[float],
    unlabelled: int,
) -> tuple[Tensor, Tensor]:
    """The usual augmentation of label maps: images and labels are scaled, cropped at random and mirrored together.

    A view larger than the crop is cut, a smaller one is placed at random. What lies outside the image has the mean
    colour and no label. Images are sampled by bilinear interpolation, labels to the nearest.

    Args:
        image: (B, D, H, W) uint8.
        target: (B, H, W) uint8 labels.
        bits: (B,) from :func:`random_bits`.
        scale: the smallest and the largest factor; the factor's logarithm is uniform. (1, 1) neither scales nor shifts.
        flip: whether to mirror half of the images.
        mean: per channel, of pixels in [0, 1].
        unlabelled: the label of pixels outside.

    Returns:
        Pixels (B, D, H, W) float32 in 0…255, and labels (B, H, W) int64.
    """
    low, high = scale
    second, third = further_bits(bits), further_bits(bits + 1)
    factor = low * (high / low) ** uniform(bits)
    freedom = (factor - 1).abs() / factor
    shift = [(2 * uniform(draw) - 1) * freedom for draw in (second, third)]
    mirror = 1 - 2 * (bits & 1).float() if flip else torch.ones_like(factor)
    zero = torch.zeros_like(factor)
    affine = torch.stack([mirror / factor, zero, shift[0], zero, 1 / factor, shift[1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(affine, [len(image), 1, *image.shape[2:]], align_corners=False)
    fill = 255 * per_channel(tuple(mean), image.device)
    pixels = F.grid_sample(image.float() - fill, grid, mode="bilinear", align_corners=False) + fill
    inside = target.float().sub(unlabelled).unsqueeze(1)  # 0 outside
    labels = F.grid_sample(inside, grid, mode="nearest", align_corners=False).squeeze(1) + unlabelled
    return pixels, labels.round().long()


def cutout(image: Tensor, bits: Tensor, side: int, fill: Sequence[float]) -> Tensor:
    """DeVries, Taylor, *Improved Regularization of Convolutional Neural Networks with Cutout*, 2017, arXiv 1708.04552.

    Covers a square around a random pixel. Parts of the square may lie outside the image.

    Args:
        image: (B, D, H, W).
        bits: (B,) from :func:`random_bits`.
        side: of the square, in pixels.
        fill: value of the square per channel. Use the mean to match the paper, whose zeros come after normalisation.

    Returns:
        (B, D, H, W), of the same type.
    """
    height, width = image.shape[2:]
    rows, columns = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
    top, left = bits % height - side // 2, bits // height % width - side // 2
    covered = _within(rows, top, side)[:, None, :, None] & _within(columns, left, side)[:, None, None, :]
    return torch.where(covered, per_channel(tuple(fill), image.device).to(image.dtype), image)


def _within(position: Tensor, start: Tensor, length: int) -> Tensor:
    return (position >= start[:, None]) & (position < start[:, None] + length)


def color_jitter(image: Tensor, bits: Tensor, strength: float) -> Tensor:
    """Scales brightness, contrast and, for colour images, saturation by random factors in 1 ± ``strength``.

    The arithmetic is that of torchvision's ``ColorJitter``, always in this order.

    Args:
        image: (B, D, H, W) uint8; D is 1 or 3.
        bits: (B,) from :func:`random_bits`.
        strength: in [0, 1].

    Returns:
        (B, D, H, W) uint8.
    """
    pixels = image.float()
    factors = [1 + strength * (2 * uniform(draw) - 1) for draw in (bits, further_bits(bits), further_bits(bits + 1))]
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in factors)
    pixels = (pixels * brightness).clamp(0, 255).floor()
    pixels = _blend(pixels, _grey(pixels).floor().mean((2, 3), keepdim=True), contrast)
    if image.shape[1] == 3:
        pixels = _blend(pixels, _grey(pixels).floor(), saturation)
    return pixels.to(image.dtype)


def _grey(pixels: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * pixels + (1 - factor) * other).clamp(0, 255).floor()
