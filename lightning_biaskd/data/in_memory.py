"""Data sets that fit in memory, or on the GPU: fetched and augmented batch by batch."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_biaskd.data.augment import color_jitter, count_views, crop_and_flip, cutout, view_bits, view_number
from lightning_biaskd.data.base import ImageDataModule
from lightning_biaskd.data.batch import Batch, SeededViews, TensorImages, TorchvisionViews
from lightning_biaskd.data.strong_view import strong_view
from lightning_biaskd.errors import UserError
from lightning_biaskd.files import fingerprint
from lightning_biaskd.randomness.bits import further_bits, random_bits

Split = Literal["train", "test"]


class InMemoryDataModule(ImageDataModule):
    """Base for data sets that fit in memory: a subclass reads them as uint8 tensors.

    They are kept on a GPU that has room for them, and otherwise in memory.

    Args:
        *args: as of :class:`ImageDataModule`.
        strong_view: adds to every training batch a second, strongly augmented view of each image, see
            :func:`~lightning_biaskd.data.strong_view.strong_view`: the batch holds 2B images, the weak views first, and
            labels and sample numbers twice. As a loss is a mean over the batch, it is the average of the two views'.
            Published codes sum them, so their weights, that of cross-entropy too, are doubled here.
        cutout: side of a square that covers part of each view, in pixels; 0 for none.
        color_jitter: how far brightness, contrast and saturation may go from 1; 0 for none.
        views: draw each image's views from as many fixed ones, chosen at random once per image and seed; ``None`` for
            all there are. A cache of the teacher's answers holds one for each.
        train_size: number of training images, drawn by ``seed`` from those that validation leaves; ``None`` for all.
        label_noise: share of them whose label is replaced by another class, any with the same chance, by ``seed``.
            Labels of validation and test stay as they are.
        **kwargs: likewise.

    Attributes:
        padding: pixels of zero padding before the random crop.
        flip: whether to mirror at random.

    Raises:
        UserError: no view at all, or an impossible cut-out or range of colours.
    """

    padding: ClassVar[int] = 4
    flip: ClassVar[bool] = True

    def __init__(
        self,
        *args: Any,
        strong_view: bool = False,
        cutout: int = 0,
        color_jitter: float = 0.0,
        views: int | None = None,
        train_size: int | None = None,
        label_noise: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if views is not None and views < 1:
            raise UserError(f"views={views} leaves nothing to train on: give 1 at least, or null for all views")
        if cutout < 0 or not 0 <= color_jitter <= 1:
            raise UserError(
                f"cutout={cutout} and color_jitter={color_jitter}: a side of 0 pixels or more, and a share from 0 to 1"
            )
        self.through_pillow = self.augment == "torchvision"
        self.strong_view = strong_view
        self.cutout = cutout
        self.color_jitter = color_jitter
        self.fixed_views = views
        self.train_size = train_size
        self.label_noise = label_noise

    @abstractmethod
    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """Images (N, D, H, W) uint8 and labels (N,) int64 of one split.

        Raises:
            UserError: data that aren't there or are damaged.
        """

    def augmented(self, image: Tensor, bits: Tensor) -> Tensor:
        """See :class:`ImageDataModule`: zero-pad, crop, mirror; colours and a cut-out, if wanted."""
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
        """See :class:`ImageDataModule`.

        ``None`` too where a subclass changes what training sees, unless it is :meth:`augmented` and views are fixed.
        """
        if self.strong_view or self.through_pillow or self._overrides("training_views", "on_after_batch_transfer"):
            return None
        if not self.augment:
            return 1
        if self.fixed_views is not None:
            return self.fixed_views
        cropped_only = not (self.cutout or self.color_jitter or self._overrides("augmented"))
        return count_views(self.padding, self.flip) if cropped_only else None

    def _overrides(self, *methods: str) -> bool:
        return any(getattr(type(self), name) is not getattr(InMemoryDataModule, name) for name in methods)

    def training_views(self, batch: Batch, bits: Tensor) -> Batch:
        """See :class:`ImageDataModule`; the strong views, if wanted, follow the weak ones. They are cropped anew."""
        if self.through_pillow:
            return batch
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
        """The views (B,) of those numbers, not yet normalised; numbers are below :attr:`view_count`."""
        if not self.augment:
            return batch._replace(view=view)
        drawn = self.fixed_views is not None
        bits = random_bits(self.seed, view, batch.index) if drawn else view_bits(view, self.flip)
        return batch._replace(image=self.augmented(batch.image, bits), view=view)

    def numbered_images(self, sample: Tensor, view: Tensor) -> Tensor:
        """Views of training images as a network sees them; the number after the last view is the image as it is.

        Args:
            sample: (B,), the images' numbers.
            view: (B,), up to :attr:`view_count`, which must be known.

        Returns:
            (B, D, H, W) float, on the device of ``view``.
        """
        assert self.view_count is not None
        batch = cast("TensorImages", self.train_set).pick(sample.cpu())
        batch = batch._replace(image=batch.image.to(view.device), index=sample.to(view.device))
        image = self.numbered_views(batch, view.clamp_max(self.view_count - 1)).image
        plain = (view == self.view_count).view(-1, 1, 1, 1)
        return self.normalized(torch.where(plain, batch.image, image))

    def numbers_and_views(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of the images that training and validation use, each time with those of the views they use."""
        count = cast("int", self.view_count)
        yield cast("TensorImages", self.train_set).index, torch.arange(count)
        if self.val_set is not None:
            yield cast("TensorImages", self.val_set).index, torch.tensor([count])

    def fingerprint(self) -> str:
        """Names the training images and the views that numbers stand for; splits and labels don't matter.

        A subclass's augmentation goes by the name of the class, not by its code.
        """
        drawn = (self.fixed_views, self.seed) if self.fixed_views is not None else None
        views = self.augment, self.padding, self.flip, self.cutout, self.color_jitter, drawn
        name = type(self).__module__, type(self).__qualname__
        return fingerprint(*name, *views, self.mean, self.std, cast("TensorImages", self.train_set).image)

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any]]:
        """See :class:`ImageDataModule`."""
        # a gather from memory costs less than handing a batch over from another process
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        image, target = self._checked("train")
        image = image.contiguous(memory_format=torch.channels_last)  # once for both parts
        train, val = self.split(len(image))
        train = self._subset(train)
        test_image, test_target = self._checked("test")
        images = TensorImages(image, self._noisy(target, train), train)
        training = SeededViews(TorchvisionViews(images, self.padding, self.flip)) if self.through_pillow else images
        return (
            training,
            TensorImages(image, target, val) if len(val) else None,
            TensorImages(test_image, test_target, torch.arange(len(test_image))),
        )

    def _subset(self, train: Tensor) -> Tensor:
        if self.train_size is None:
            return train
        if not 0 < self.train_size <= len(train):
            raise UserError(f"train_size={self.train_size}, but there are {len(train)} training images: choose fewer")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
        return train[order[: self.train_size].sort().values]

    def _noisy(self, target: Tensor, train: Tensor) -> Tensor:
        if not 0 <= self.label_noise <= 1:
            raise UserError(f"label_noise={self.label_noise} is no share: choose a number from 0 to 1")
        generator = torch.Generator().manual_seed(self.seed)
        changed = train[torch.randperm(len(train), generator=generator)[: round(self.label_noise * len(train))]]
        step = torch.randint(1, self.num_classes, changed.shape, generator=generator)
        noisy = target.clone()
        noisy[changed] = (target[changed] + step) % self.num_classes
        return noisy

    def _checked(self, split: Split) -> tuple[Tensor, Tensor]:
        image, target = self.read(split)
        if len(image) != len(target):
            raise UserError(f"the {split} files in {self.root!r} hold {len(image)} images and {len(target)} labels")
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(
                f"{split} labels in {self.root!r} lie in [{low}, {high}], outside [0, {self.num_classes - 1}]: "
                f"these are no files of {type(self).__name__}"
            )
        return image, target
