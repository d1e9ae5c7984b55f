"""Batches of images with boxes, as a detector's step takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_biaskd.errors import UserError
from lightning_biaskd.training.checks import may_read

_BRIGHTEST = 10  # of images that are normalised, some standard deviations


def boxed_batch(batch: Any, batch_idx: int, classes: int | None) -> Sequence[Any]:
    """A batch ``(images, targets, …)`` of what a loader gave.

    Args:
        batch: what the loader gave.
        batch_idx: index of the batch in the epoch. On an accelerator, values are read in the first batch only.
        classes: C, the background included; ``None`` if it is not known.

    Raises:
        UserError: a batch of another kind, pixels or labels out of range, or boxes that are no pixels of their image.
    """
    if not isinstance(batch, Sequence) or len(batch) < 2 or isinstance(batch[1], Tensor):
        raise UserError(
            f"a batch is a {type(batch).__name__}: let the loader give (images, targets), as torchvision's detectors "
            "take them, by a collate_fn such as lambda samples: tuple(zip(*samples))"
        )
    images, targets = boxed_images(batch, batch_idx), batch[1]
    if len(images) != len(targets):
        raise UserError(
            f"a batch holds {len(images)} images and {len(targets)} targets: give one target for each image"
        )
    for image, target in zip(images, targets, strict=True):
        _check_target(target, image, batch_idx, classes)
    return batch


def boxed_images(batch: Any, batch_idx: int) -> Sequence[Tensor]:
    """The images of a batch to predict, tensors (3, H, W) in [0, 1]: the batch itself, or its first part.

    Raises:
        UserError: images of another kind, or pixels out of range.
    """
    images = batch if not isinstance(batch, Sequence) or isinstance(batch[0], Tensor) else batch[0]
    for image in images:
        if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
            described = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
            raise UserError(
                f"a batch holds an image {described}: give tensors (3, H, W) of floats in [0, 1], or pass a data "
                "module itself, not its loader"
            )
    if len(images) and may_read(images[0], batch_idx) and (brightest := float(images[0].max())) > _BRIGHTEST:
        raise UserError(f"an image has values up to {brightest:.0f}, not in [0, 1]: divide them by 255")
    return images  # type: ignore[no-any-return]


def _check_target(target: Any, image: Tensor, batch_idx: int, classes: int | None) -> None:
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        raise UserError("a target must be a mapping with boxes (n, 4) and labels (n,)")
    boxes, labels = target["boxes"], target["labels"]
    if boxes.shape != (len(labels), 4) or labels.ndim != 1 or labels.is_floating_point():
        raise UserError(
            f"a target has boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}: give boxes (n, 4) as (x1, y1, "
            "x2, y2) in pixels and integer labels (n,)"
        )
    if not len(labels) or not may_read(labels, batch_idx):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 1 or (classes is not None and high >= classes):
        raise UserError(
            f"labels lie in [{low}, {high}], outside [1, {'C' if classes is None else classes - 1}]: class 0 is the "
            "background, so number the classes of the objects from 1"
        )
    _check_boxes(boxes, image)


def _check_boxes(boxes: Tensor, image: Tensor) -> None:
    height, width = image.shape[-2:]
    if bool((boxes <= 1).all()):
        raise UserError("a target's boxes lie in [0, 1]: give (x1, y1, x2, y2) in pixels, not relative to the image")
    if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
        raise UserError("a target has a box without area: give boxes as (x1, y1, x2, y2) with x1 < x2 and y1 < y2")
    if bool((boxes[:, :2] >= boxes.new_tensor([width, height])).any() or (boxes[:, 2:] <= 0).any()):
        raise UserError(
            f"a target has a box outside of its image of {width}x{height} pixels: resize boxes with their images, and "
            "give them as (x1, y1, x2, y2)"
        )
