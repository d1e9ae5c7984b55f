"""What all data modules share; each data set is a few constants and a way to read its files."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_biaskd.data.augment import (
    color_jitter,
    count_views,
    crop_and_flip,
    cutout,
    further_bits,
    random_bits,
    view_bits,
    view_number,
)
from lightning_biaskd.data.batch import Batch, TensorImages, TorchvisionViews, collate
from lightning_biaskd.data.strong_view import strong_view
from lightning_biaskd.errors import UserError

Split = Literal["train", "test"]


class ImageDataModule(LightningDataModule):
    """Base of the data modules: splits, loaders, and normalisation and augmentation on the device.

    A subclass states the constants and gives :meth:`read` (a data set in memory) or :meth:`datasets`. Views are drawn
    on the device from (seed, epoch, sample) alone, so that any rank, any number of workers and any resumed run draws
    the same.

    Args:
        root: folder that holds the data.
        batch_size: per process.
        val_split: part of the training set held out for validation: a share below 1, or a number of images; 0 for none.
        seed: of the validation split and of the augmentation.
        augment: whether training images are augmented, on the device; ``"torchvision"`` augments those in memory one
            by one through Pillow instead, the usual way, from the random state of the process.
        num_workers: processes that load data; 0 loads in the training process.
        download: fetch the data into ``root`` if they aren't there.

    Attributes:
        num_classes: C.
        class_names: one per class, ``None`` where there are none but the numbers.
        in_channels: of the images.
        image_size: height and width in pixels.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        num_samples: how many training images are numbered, those held out for validation among them.

    Raises:
        UserError: data that aren't there or are damaged, labels out of range, or an impossible ``val_split``.
    """

    num_classes: int
    class_names: Sequence[str] | None = None
    in_channels: ClassVar[int] = 3
    image_size: ClassVar[int]
    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        val_split: int | float = 0.1,
        seed: int = 0,
        augment: bool | Literal["torchvision"] = True,
        num_workers: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__()
        self.root = root
        self.batch_size = batch_size
        self.val_split = val_split
        self.seed = seed
        self.augment = augment
        self.num_workers = num_workers
        self.download = download
        self.num_samples: int | None = None
        self._affine: tuple[Tensor, Tensor] | None = None
        self.train_set: Dataset[Any] | None = None
        self.val_set: Dataset[Any] | None = None
        self.test_set: Dataset[Any] | None = None

    @abstractmethod
    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any]]:
        """The training, validation (``None`` for none) and test sets, each of ``(image, target, sample)``."""

    @abstractmethod
    def augmented(self, image: Tensor, bits: Tensor) -> Tensor:
        """A training view of each image (B, D, H, W), drawn by random bits (B,)."""

    def split(self, size: int) -> tuple[Tensor, Tensor]:
        """Numbers of the training and of the validation images, by ``val_split`` and ``seed``."""
        self.num_samples = size
        held_out = round(self.val_split * size) if self.val_split < 1 else int(self.val_split)
        if not 0 <= held_out < size:
            raise UserError(
                f"val_split={self.val_split} of {size} training images leaves none to train on: choose less"
            )
        order = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))
        return order[held_out:].sort().values, order[:held_out].sort().values

    def setup(self, stage: str | None = None) -> None:
        if self.train_set is None:
            self.train_set, self.val_set, self.test_set = self.datasets()
        if self.val_set is None:  # asked for, so nothing to be warned of
            warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, Batch):
            return batch
        if self.trainer is not None and self.trainer.training:
            batch = self.training_views(batch, random_bits(self.seed, self.trainer.current_epoch, batch.sample))
        elif self.trainer is not None and self.trainer.validating and self.view_count is not None:
            batch = batch._replace(view=torch.full_like(batch.sample, self.view_count))  # the image as it is
        return batch._replace(image=self.normalized(batch.image))

    @property
    def view_count(self) -> int | None:
        """How many training views an image has, ``None`` if they can't be counted."""
        return None

    def training_views(self, batch: Batch, bits: Tensor) -> Batch:
        """What a training step sees of a batch, not yet normalised, drawn by random bits (B,)."""
        return batch._replace(image=self.augmented(batch.image, bits)) if self.augment else batch

    def normalized(self, image: Tensor) -> Tensor:
        """Pixels (B, D, H, W) in 0…255 to floats of about zero mean and unit variance."""
        scale, shift = self._affine or (None, None)
        if scale is None or shift is None or scale.shape[1:] != image.shape[1:] or scale.device != image.device:
            # once, as a copy waits for the device; as large as an image, because a row of numbers is faster than three
            mean, std = (
                torch.tensor(values, device=image.device).view(1, -1, 1, 1) for values in (self.mean, self.std)
            )
            whole = torch.ones_like(image[:1], dtype=torch.float32)
            scale, shift = self._affine = (whole / (255 * std), -whole * mean / std)
        return torch.addcmul(shift, image.float(), scale)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return [] if self.val_set is None else self.loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def loader(self, dataset: Dataset[Any] | None, shuffle: bool = False) -> DataLoader[Any]:
        """A loader of :class:`Batch`."""
        resident = isinstance(dataset, TensorImages) and self._move(dataset)
        return DataLoader(
            cast("Dataset[Any]", dataset),
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available() and not resident,
            collate_fn=collate,
        )

    def _move(self, dataset: TensorImages) -> bool:
        """Puts a data set on the GPU that trains on it, if a quarter of its free memory will do; says if it is."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda" or self.num_workers:
            return False
        if dataset.image.device != device and dataset.image.nbytes <= torch.cuda.mem_get_info(device)[0] / 4:
            dataset.to(device)
        return dataset.image.is_cuda


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
        UserError: no view at all.
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
        """See :class:`ImageDataModule`."""
        if self.strong_view or self.through_pillow:
            return None
        if not self.augment:
            return 1
        if self.fixed_views is not None:
            return self.fixed_views
        return None if self.cutout or self.color_jitter else count_views(self.padding, self.flip)

    def training_views(self, batch: Batch, bits: Tensor) -> Batch:
        """See :class:`ImageDataModule`; the strong views, if wanted, follow the weak ones. They are cropped anew."""
        if self.through_pillow:
            return batch
        weak = self._weak_views(batch, bits)
        if not self.strong_view:
            return weak
        bits = further_bits(bits)
        strong = strong_view(self.augmented(batch.image, bits), bits)
        return Batch(torch.cat([weak.image, strong]), weak.target.repeat(2), weak.sample.repeat(2))

    def _weak_views(self, batch: Batch, bits: Tensor) -> Batch:
        if not self.augment:
            return batch._replace(view=torch.zeros_like(batch.sample))
        if self.fixed_views is not None:
            return self.numbered_views(batch, bits % self.fixed_views)
        view = None if self.view_count is None else view_number(bits, self.padding, self.flip)
        return batch._replace(image=self.augmented(batch.image, bits), view=view)

    def numbered_views(self, batch: Batch, view: Tensor) -> Batch:
        """The views (B,) of those numbers, not yet normalised; numbers are below :attr:`view_count`."""
        if not self.augment:
            return batch._replace(view=view)
        drawn = self.fixed_views is not None
        bits = random_bits(self.seed, view, batch.sample) if drawn else view_bits(view, self.flip)
        return batch._replace(image=self.augmented(batch.image, bits), view=view)

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
        training = TorchvisionViews(images, self.padding, self.flip) if self.through_pillow else images
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
