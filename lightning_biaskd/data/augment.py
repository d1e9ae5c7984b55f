"""Augmentation on the device, reproducible from (seed, epoch, index) alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as ops

from lightning_biaskd.hashing import GOLDEN, hashed, mix


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
    start = mix(torch.tensor([seed], dtype=torch.int64, device=index.device) * GOLDEN + epoch + 1)
    return hashed(mix(start + index))


def further_bits(bits: Tensor) -> Tensor:
    """A second draw (B,) of :func:`random_bits` from the first, for another view of the same image.

    Example:
        >>> first = random_bits(0, 0, torch.tensor([0, 1]))
        >>> bool((further_bits(first) != first).all())
        True
    """
    return hashed(bits)


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


def _moved(image: Tensor, degrees: tuple[float, float] = (0.0, 0.0), by: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Sheared by angles about the upper left corner, then shifted by shares of width and height; black comes in."""
    pixels = [round(by[0] * image.shape[-1]), round(by[1] * image.shape[-2])]
    moved: Tensor = ops.affine(image, angle=0.0, translate=pixels, scale=1.0, shear=list(degrees), center=[0.0, 0.0])
    return moved


_STRONG: tuple[tuple[Callable[[Tensor, float], Tensor], float, float], ...] = (
    (lambda image, _: image, 0.0, 1.0),
    (lambda image, _: ops.autocontrast(image), 0.0, 1.0),
    (lambda image, _: ops.equalize(image), 0.0, 1.0),
    (ops.adjust_brightness, 0.05, 0.95),
    (ops.adjust_saturation, 0.05, 0.95),
    (ops.adjust_contrast, 0.05, 0.95),
    (ops.adjust_sharpness, 0.05, 0.95),
    (lambda image, bits: ops.posterize(image, int(bits)), 4.0, 8.0),
    (ops.solarize, 0.0, 255.0),
    (ops.rotate, -30.0, 30.0),
    (lambda image, slope: _moved(image, degrees=(math.degrees(math.atan(slope)), 0.0)), -0.3, 0.3),
    (lambda image, slope: _moved(image, degrees=(0.0, math.degrees(math.atan(slope)))), -0.3, 0.3),
    (lambda image, share: _moved(image, by=(share, 0.0)), -0.3, 0.3),
    (lambda image, share: _moved(image, by=(0.0, share)), -0.3, 0.3),
)
"""Each operation of the strong view, and the range that its strength is drawn from."""
_PATCH = (125, 123, 114)  # the mean colour of CIFAR-10
_GREY_PATCH = (123,)  # its luminance


def strong_view(image: Tensor, bits: Tensor) -> Tensor:
    """Two random operations on each image, then a square patch over it: what MLKD calls the strong augmentation.

    The recipe is that of its authors' code (Jin-Ying/Multi-Level-Logit-Distillation), which has it from FixMatch (Sohn
    et al., 2020): a RandAugment (Cubuk et al., 2020) whose strengths are uniform, not fixed, and Cutout (DeVries and
    Taylor, 2017) of a side up to half the image's, so torchvision's ``RandAugment`` isn't it. Where an operation has no
    meaning for a grey image (its saturation), it leaves it as it is.

    This is Python per image, 0.2 ms for each of CIFAR on a CPU core; on an accelerator it waits once per batch for
    ``bits``.

    Args:
        image: (B, D, H, W) uint8, cropped and mirrored; D is 1 or 3.
        bits: (B,) from :func:`random_bits`.

    Returns:
        (B, D, H, W) uint8.
    """
    return torch.stack([_strong(one, number) for one, number in zip(image, bits.tolist(), strict=True)])


def _strong(image: Tensor, number: int) -> Tensor:
    draws = torch.rand(7, generator=torch.Generator().manual_seed(number), dtype=torch.float64).tolist()
    for which, strength in (draws[:2], draws[2:4]):
        operation, low, high = _STRONG[int(which * len(_STRONG))]
        image = operation(image, low + (high - low) * strength)
    height, width = image.shape[1:]
    side = draws[4] / 2 * width
    top, left = (int(max(0.0, at * size - side / 2)) for at, size in ((draws[5], height), (draws[6], width)))
    patch = torch.tensor(_PATCH if len(image) == 3 else _GREY_PATCH, dtype=image.dtype, device=image.device)
    image = image.clone()
    image[:, top : int(top + side) + 1, left : int(left + side) + 1] = patch.view(-1, 1, 1)
    return image
