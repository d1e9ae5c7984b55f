"""Training views of images that are decoded when they are fetched, with numbers if a data module fixes how many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_biaskd.data.base import SEEN_THROUGH, ImageDataModule, overrides
from lightning_biaskd.data.batch import Batch, SeededViews
from lightning_biaskd.data.loader import ImageLoader
from lightning_biaskd.files import fingerprint
from lightning_biaskd.randomness.bits import random_bits
from lightning_biaskd.randomness.state import drawing_from

View = Callable[[Any], Tensor]
"""From a decoded image to pixels (D, H, W) uint8; it may draw from torch's random state. Its ``repr`` identifies it."""


class DecodedFiles(Protocol):
    """Image files that are decoded when they are asked for."""

    def decoded(self, index: int) -> Any:
        """The image with the given index."""

    def fingerprint(self) -> str:
        """Identifies the images, wherever their files are."""


class FileViews(ImageDataModule):
    """Views of images in files. They have numbers if ``views`` is set.

    A numbered view is a function of the data's ``seed``, the index of the image and the number. The worker that decodes
    the image draws the crop, and :meth:`augmented` the rest on the device. Which of its views an image shows depends on
    the run's seed, the epoch and the index.

    Attributes:
        views: number of fixed views per image to draw from; ``None`` draws a new one in every epoch.
        files: the training images.
        train_view: makes a training view of a decoded image.
        test_view: makes the view for evaluation.
    """

    views: int | None = None
    files: DecodedFiles
    train_view: View
    test_view: View

    @property
    def view_count(self) -> int | None:
        """The number of training views per image; ``None`` if they have no numbers.

        A subclass that overrides what training sees has no numbered views, unless it overrides only :meth:`augmented`.
        """
        if self.views is None or overrides(self, FileViews, *SEEN_THROUGH):
            return None
        return self.views if self.augment else 1

    def training_views(self, batch: Batch, bits: Tensor) -> Batch:
        """Draws from the bits of the numbered view, if it has a number."""
        if batch.view is not None:
            bits = random_bits(self.seed, batch.view, batch.index)
        return super().training_views(batch, bits)

    def numbered_images(self, index: Tensor, view: Tensor) -> Tensor:
        """Views of training images, see :class:`~lightning_biaskd.data.numbered.NumberedViews`."""
        return self._normalized_views(_ViewsOfFiles(self)[index.cpu(), view.cpu()], index, view)

    def numbered_batches(
        self, index: Tensor, view: Tensor, batch_size: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields indices, numbers and views, batch by batch; ``num_workers`` processes decode each image once."""
        starts = range(0, len(index), batch_size)
        parts = [(index[start : start + batch_size], view[start : start + batch_size]) for start in starts]
        loader = ImageLoader(_ViewsOfFiles(self), sampler=parts, batch_size=None, num_workers=self.num_workers)
        for (index, view), pixels in zip(parts, loader, strict=True):
            yield index, view, self._normalized_views(pixels, index.to(device), view.to(device))

    def _normalized_views(self, pixels: Tensor, index: Tensor, view: Tensor) -> Tensor:
        image = pixels.to(view.device)
        drawn = self.training_views(Batch(image, torch.zeros_like(index), index.to(view.device), view), view)
        plain = torch.eq(view, cast("int", self.view_count)).view(-1, 1, 1, 1)
        return self.normalized(torch.where(plain, image, drawn.image))

    def numbers_and_views(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the indices of the images that training and then validation use, with the numbers of their views."""
        count = cast("int", self.view_count)
        used = cast("SeededViews", self.train_set).index
        yield used, torch.arange(count)
        if self.val_set is not None:
            held_out = torch.ones(cast("int", self.num_samples), dtype=torch.bool).index_fill(0, used, False)
            yield held_out.nonzero().view(-1), torch.tensor([count])

    def fingerprint(self) -> str:
        """Identifies the training images and what the numbers of views mean, regardless of splits and labels.

        A subclass's augmentation is identified by the name of the class, not by its code.
        """
        name = type(self).__module__, type(self).__qualname__
        drawn = (self.views, self.seed) if self.augment else None
        return fingerprint(*name, drawn, self.train_view, self.test_view, self.mean, self.std, self.files.fingerprint())


class _ViewsOfFiles(Dataset[Any]):
    """Views (B, D, H, W) of images (B,), in the order of their indices, each image decoded once."""

    def __init__(self, data: FileViews) -> None:
        self.files, self.train_view, self.test_view = data.files, data.train_view, data.test_view
        self.seed, self.count = data.seed, data.view_count

    def __getitem__(self, wanted: tuple[Tensor, Tensor]) -> Tensor:
        found, last, image = [], None, None
        for index, view in zip(wanted[0].tolist(), wanted[1].tolist(), strict=True):
            if index != last:
                last, image = index, self.files.decoded(index)
            found.append(self._view(image, index, view))
        return torch.stack(found)

    def _view(self, image: Any, index: int, view: int) -> Tensor:
        if view == self.count:
            return self.test_view(image)
        with drawing_from(int(random_bits(self.seed, view, torch.tensor([index])))):
            return self.train_view(image)
