"""The strong augmentation of methods that compare two views of an image."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as ops

from lightning_biaskd.data.augment import per_channel


def _moved(image: Tensor, degrees: tuple[float, float] = (0.0, 0.0), by: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Shears about the upper left corner, then shifts by shares of width and height; new pixels are black."""
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
    """Applies MLKD's strong augmentation: two random operations on each image, then a square patch.

    It follows the authors' code (Jin-Ying/Multi-Level-Logit-Distillation), which takes it from FixMatch (Sohn et al.,
    2020): RandAugment (Cubuk et al., 2020) with uniform instead of fixed strengths, and Cutout (DeVries and Taylor,
    2017) with a side of up to half the image's. It therefore differs from torchvision's ``RandAugment``. Operations
    without meaning for grey images, such as saturation, leave them unchanged.

    It runs Python code for each image. On an accelerator, it waits once per batch for ``bits``.

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
    patch = per_channel(_PATCH if len(image) == 3 else _GREY_PATCH, image.device).to(image.dtype)
    image = image.clone()
    image[:, top : int(top + side) + 1, left : int(left + side) + 1] = patch
    return image
