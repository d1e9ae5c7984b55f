"""Data sets that fit in memory or on the GPU, fetched and augmented batch by batch."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_biaskd.data.batch import TensorImages
from lightning_biaskd.data.labels import class_numbers
from lightning_biaskd.data.numbered import checked_views
from lightning_biaskd.data.views import CountableViews
from lightning_biaskd.errors import UserError
from lightning_biaskd.randomness.bits import further_bits, random_bits

Split = Literal["train", "test"]

_LABELS = -2  # in place of an epoch: draws that no epoch's order or views depend on


class InMemoryDataModule(CountableViews):
    """Base of data modules for data that fit in memory; a subclass reads them as uint8 tensors.

    The data are stored on the GPU if it has enough free memory, and in main memory otherwise.

    Args:
        *args: as of :class:`ImageDataModule`.
        strong_view: adds to every training batch a second, strongly augmented view of each image, see
            :func:`~lightning_biaskd.data.strong_view.strong_view`: the batch has 2B images, the weak views first, and
            repeats labels and indices. A loss is then the average over the two views. Published code sums them, so
            double its weights here, including that of the cross-entropy.
        cutout: side of a square that covers part of each view, in pixels; 0 for none.
        color_jitter: largest change of the factors of brightness, contrast and saturation; 0 for none.
        views: draw from this number of fixed views per image, chosen at random once per image and seed; ``None`` draws
            from all views. A cache of the teacher stores one output per view.
        train_size: number of training images, drawn by ``seed`` from those that are not held out; ``None`` for all.
        label_noise: share of the training images whose label is replaced by another class, chosen uniformly by
            ``seed``. The labels of validation and test images do not change.
        **kwargs: as of :class:`ImageDataModule`.

    Attributes:
        padding: pixels of zero padding before the random crop.
        flip: whether to mirror at random.

    Raises:
        UserError: fewer than one view, or an impossible ``cutout`` or ``color_jitter``.
    """

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
        if cutout < 0 or not 0 <= color_jitter <= 1:
            raise UserError(
                f"cutout={cutout} and color_jitter={color_jitter}: a side of 0 pixels or more, and a share from 0 to 1"
            )
        self.strong_view = strong_view
        self.cutout = cutout
        self.color_jitter = color_jitter
        self.fixed_views = checked_views(views)
        self.train_size = train_size
        self.label_noise = label_noise

    @abstractmethod
    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """Reads the images (N, D, H, W) uint8 and labels (N,) int64 of one split.

        Raises:
            UserError: the data are missing or damaged.
        """

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any]]:
        # gathering from memory is cheaper than receiving a batch from another process
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        image, target = self._checked("train")
        image = image.contiguous(memory_format=torch.channels_last)  # once for both parts
        train, val = self.split(len(image))
        train = self._subset(train)
        test_image, test_target = self._checked("test")
        images = TensorImages(image, self._noisy(target, train), train)
        return (
            images,
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
        bits = random_bits(self.seed, _LABELS, train)
        some = bits.argsort()[: round(self.label_noise * len(train))]
        changed, step = train[some], 1 + further_bits(bits)[some] % (self.num_classes - 1)
        noisy = target.clone()
        noisy[changed] = (target[changed] + step) % self.num_classes
        return noisy

    def _checked(self, split: Split) -> tuple[Tensor, Tensor]:
        image, target = self.read(split)
        image, target = torch.as_tensor(image), class_numbers(target, f"the {split} labels")
        channels = len(self.mean)
        if not all(0 <= value <= 1 for value in self.mean):
            raise UserError(f"mean {list(self.mean)} is not one of pixels in [0, 1]: divide mean and std by 255")
        if image.ndim == 3 and channels == 1:
            image = image.unsqueeze(1)
        if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[1] != channels:
            raise UserError(
                f"{type(self).__name__} reads {split} images of shape {tuple(image.shape)} and type {image.dtype}: "
                f"they must be (N, {channels}, H, W), torch.uint8 pixels in 0…255, as many channels as mean has numbers"
            )
        if len(image) != len(target) or not len(image):
            raise UserError(f"the {split} files in {self.root!r} hold {len(image)} images and {len(target)} labels")
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(
                f"{split} labels in {self.root!r} lie in [{low}, {high}], outside [0, {self.num_classes - 1}]: "
                f"these are no files of {type(self).__name__}"
            )
        return image, target
