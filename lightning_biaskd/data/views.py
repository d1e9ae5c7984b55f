"""Training views that can be counted, so that a cache can store the teacher's outputs for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from lightning_biaskd.data.augment import color_jitter, crop_and_flip, cutout
from lightning_biaskd.data.base import SEEN_THROUGH, ImageDataModule, overrides
from lightning_biaskd.data.batch import Batch, TensorImages
from lightning_biaskd.data.strong_view import strong_view
from lightning_biaskd.files import fingerprint
from lightning_biaskd.randomness.bits import further_bits, random_bits


def count_views(padding: int, flip: bool) -> int:
    """How many views :func:`crop_and_flip` can make of an image: 162 for CIFAR."""
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def view_number(bits: Tensor, padding: int, flip: bool) -> Tensor:
    """The number of the view that each of ``bits`` (B,) draws, below :func:`count_views`.

    Example:
        >>> from lightning_biaskd.randomness.bits import random_bits
        >>> bits = random_bits(0, 0, torch.arange(1000))
        >>> numbers = view_number(bits, 4, True)
        >>> int(numbers.min()) >= 0, int(numbers.max()) < 162, numbers.unique().numel() == 162
        (True, True, True)
    """
    shift = (bits >> 1) % (2 * padding + 1) ** 2
    return 2 * shift + (bits & 1) if flip else shift


def view_bits(number: Tensor, flip: bool) -> Tensor:
    """Bits (B,) that draw the views with the given numbers; the inverse of :func:`view_number`."""
    return number if flip else 2 * number


class CountableViews(ImageDataModule):
    """Training views of images in memory. Each view has a number if the views can be counted.

    Attributes:
        padding: pixels of zero padding before the random crop.
        flip: whether to mirror at random.
        strong_view: whether batches also contain a strongly augmented view of each image.
        cutout: side of a square that covers part of each view; 0 for none.
        color_jitter: largest change of the factors of brightness, contrast and saturation; 0 for none.
        fixed_views: number of fixed views per image to draw from; ``None`` draws from all.
    """

    padding: int = 4
    flip: bool = True
    strong_view: bool
    cutout: int
    color_jitter: float
    fixed_views: int | None

    def augmented(self, image: Tensor, bits: Tensor) -> Tensor:
        """Pads with zeros, crops and mirrors; then changes colours and cuts out a square, if enabled."""
        image = crop_and_flip(image, bits, self.padding, self.flip)
        if self.color_jitter:
            bits = further_bits(bits)
            image = color_jitter(image, bits, self.color_jitter)
        if self.cutout:
            bits = further_bits(bits)
            image = cutout(image, bits, self.cutout, [255 * mean for mean in self.mean])
        return image

    @property
    def view_count(self) -> int | None:
        """The number of training views per image; ``None`` if they cannot be counted.

        A subclass that overrides what training sees has no countable views, unless it overrides only :meth:`augmented`
        and views are fixed.
        """
        if self.strong_view or overrides(self, CountableViews, *SEEN_THROUGH):
            return None
        if not self.augment:
            return 1
        if self.fixed_views is not None:
            return self.fixed_views
        cropped_only = not (self.cutout or self.color_jitter or overrides(self, CountableViews, "augmented"))
        return count_views(self.padding, self.flip) if cropped_only else None

    def training_views(self, batch: Batch, bits: Tensor) -> Batch:
        """The weak views, followed by the strong ones if enabled. Strong views have their own crops."""
        weak = self._weak_views(batch, bits)
        if not self.strong_view:
            return weak
        bits = further_bits(bits)
        strong = strong_view(self.augmented(batch.image, bits), bits)
        return Batch(torch.cat([weak.image, strong]), weak.target.repeat(2), weak.index.repeat(2))

    def _weak_views(self, batch: Batch, bits: Tensor) -> Batch:
        if not self.augment:
            return batch._replace(view=torch.zeros_like(batch.index))
        if self.fixed_views is not None:
            return self.numbered_views(batch, bits % self.fixed_views)
        view = None if self.view_count is None else view_number(bits, self.padding, self.flip)
        return batch._replace(image=self.augmented(batch.image, bits), view=view)

    def numbered_views(self, batch: Batch, view: Tensor) -> Batch:
        """The views with the given numbers (B,), not yet normalised. Numbers are below :attr:`view_count`."""
        if not self.augment:
            return batch._replace(view=view)
        drawn = self.fixed_views is not None
        bits = random_bits(self.seed, view, batch.index) if drawn else view_bits(view, self.flip)
        return batch._replace(image=self.augmented(batch.image, bits), view=view)

    def numbered_images(self, index: Tensor, view: Tensor) -> Tensor:
        """Views of training images, see :class:`~lightning_biaskd.data.numbered.NumberedViews`."""
        assert self.view_count is not None
        batch = cast("TensorImages", self.train_set).pick(index.cpu())
        batch = batch._replace(image=batch.image.to(view.device), index=index.to(view.device))
        image = self.numbered_views(batch, view.clamp_max(self.view_count - 1)).image
        plain = (view == self.view_count).view(-1, 1, 1, 1)
        return self.normalized(torch.where(plain, batch.image, image))

    def numbered_batches(
        self, index: Tensor, view: Tensor, batch_size: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields indices, numbers and views, batch by batch."""
        for start in range(0, len(index), batch_size):
            some, views = index[start : start + batch_size], view[start : start + batch_size]
            yield some, views, self.numbered_images(some.to(device), views.to(device))

    def numbers_and_views(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the indices of the images that training and then validation use, with the numbers of their views."""
        count = cast("int", self.view_count)
        yield cast("TensorImages", self.train_set).index, torch.arange(count)
        if self.val_set is not None:
            yield cast("TensorImages", self.val_set).index, torch.tensor([count])

    def fingerprint(self) -> str:
        """Identifies the training images and what the numbers of views mean, regardless of splits and labels.

        A subclass's augmentation is identified by the name of the class, not by its code.
        """
        drawn = (self.fixed_views, self.seed) if self.fixed_views is not None else None
        views = self.augment, self.padding, self.flip, self.cutout, self.color_jitter, drawn
        name = type(self).__module__, type(self).__qualname__
        return fingerprint(*name, *views, self.mean, self.std, cast("TensorImages", self.train_set).image)
