"""What all data modules share; each data set is a few constants and a way to read its files."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_biaskd.data.augment import crop_and_flip, further_bits, random_bits, strong_view
from lightning_biaskd.errors import UserError

Split = Literal["train", "test"]


class Batch(NamedTuple):
    """What every loader yields.

    Attributes:
        image: (B, D, H, W), uint8 off the loader, normalised float once on the device.
        target: (B,) int64 labels; (B, C) shares once they are mixed.
        sample: (B,) int64, its number in the data set, for augmentation and for methods with a memory.
    """

    image: Tensor
    target: Tensor
    sample: Tensor


class ImageDataModule(LightningDataModule):
    """Base of the data modules: splits, loaders, and normalisation and augmentation on the device.

    A subclass states the constants and gives :meth:`read` (a data set in memory) or :meth:`datasets`.

    Args:
        root: folder that holds the data.
        batch_size: per process.
        val_split: part of the training set held out for validation: a share below 1, or a number of images; 0 for none.
        seed: of the validation split and of the augmentation.
        augment: whether training images are augmented.
        num_workers: processes that load data; 0 loads in the training process.
        download: fetch the data into ``root`` if they aren't there.
        mix: mixes the images and labels of a training batch, after augmentation: ``MixUp`` or ``CutMix`` of
            ``torchvision.transforms.v2``, or a ``RandomChoice`` of them. Labels become shares (B, C), which
            :class:`~lightning_biaskd.ClassificationModule` takes and distillation doesn't. What is drawn follows from
            ``seed``, the epoch, the number of the batch and the rank.

    Attributes:
        num_classes: C.
        in_channels: of the images.
        image_size: height and width in pixels.
        class_names: of the C classes, ``None`` where they aren't known, or not yet.
        mean: per channel, of pixels in [0, 1].
        std: likewise.

    Raises:
        UserError: data that aren't there or are damaged, labels out of range, or an impossible ``val_split``.
    """

    num_classes: int
    in_channels: ClassVar[int] = 3
    image_size: int
    class_names: Sequence[str] | None = None
    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        val_split: int | float = 0.1,
        seed: int = 0,
        augment: bool = True,
        num_workers: int = 0,
        download: bool = False,
        mix: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.root = root
        self.batch_size = batch_size
        self.val_split = val_split
        self.seed = seed
        self.augment = augment
        self.num_workers = num_workers
        self.download = download
        self.mix = mix
        self._statistics: Tensor | None = None
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
        if self.trainer is None or not self.trainer.training:
            return batch._replace(image=self.normalized(batch.image))
        batch = self.views(batch, random_bits(self.seed, self.trainer.current_epoch, batch.sample))
        batch = batch._replace(image=self.normalized(batch.image))
        return batch if self.mix is None else self.mixed(batch, self.trainer, self.mix)

    def views(self, batch: Batch, bits: Tensor) -> Batch:
        """What a training step sees of a batch, not yet normalised, drawn by random bits (B,)."""
        return batch._replace(image=self.augmented(batch.image, bits)) if self.augment else batch

    def mixed(self, batch: Batch, trainer: Trainer, mix: nn.Module) -> Batch:
        """What ``mix`` makes of a training batch; its labels become shares (B, C)."""
        number = (trainer.fit_loop.batch_idx + 1) * trainer.world_size + trainer.global_rank
        seed = random_bits(self.seed, trainer.current_epoch, torch.tensor([number]))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            try:
                image, target = mix(batch.image, F.one_hot(batch.target, self.num_classes).to(batch.image))
            except ValueError as error:
                raise UserError(f"{type(mix).__name__} can't mix this batch: {error}") from error
        return batch._replace(image=image, target=target)

    def normalized(self, image: Tensor) -> Tensor:
        """Pixels (B, D, H, W) in 0…255 to floats of about zero mean and unit variance."""
        if self._statistics is None or self._statistics.device != image.device:  # once: a copy waits for the device
            self._statistics = torch.tensor([self.mean, self.std], device=image.device)[:, :, None, None]
        return (image.float() / 255 - self._statistics[0]) / self._statistics[1]

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
        return DataLoader(
            cast("Dataset[Any]", dataset),
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
        )


class TensorImages(Dataset[Any]):
    """Images in memory, fetched by one gather per batch.

    Args:
        image: (N, D, H, W) uint8.
        target: (N,) int64.
        index: (n,) the images to use.
    """

    def __init__(self, image: Tensor, target: Tensor, index: Tensor) -> None:
        self.image = image
        self.target = target
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        index = int(self.index[item])
        return self.image[index], int(self.target[index]), index

    def __getitems__(self, items: list[int]) -> Batch:
        index = self.index[torch.tensor(items)]
        return Batch(self.image[index], self.target[index], index)


def collate(samples: Any) -> Batch:
    """A batch as it comes from :class:`TensorImages`, or one made of single samples."""
    if isinstance(samples, Batch):
        return samples
    images, targets, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(targets), torch.tensor(indices))


class InMemoryDataModule(ImageDataModule):
    """Base for data sets that fit in memory: a subclass reads them as uint8 tensors.

    Args:
        *args: as of :class:`ImageDataModule`.
        strong_view: adds to every training batch a second, strongly augmented view of each image, see
            :func:`~lightning_biaskd.data.augment.strong_view`: the batch holds 2B images, the weak views first, and
            labels and sample numbers twice. As a loss is a mean over the batch, it is the average of the two views'.
            Published codes sum them, so their weights, that of cross-entropy too, are doubled here.
        **kwargs: likewise.

    Attributes:
        padding: pixels of zero padding before the random crop.
        flip: whether to mirror at random.
    """

    padding: ClassVar[int] = 4
    flip: ClassVar[bool] = True

    def __init__(self, *args: Any, strong_view: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.strong_view = strong_view

    @abstractmethod
    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """Images (N, D, H, W) uint8 and labels (N,) int64 of one split.

        Raises:
            UserError: data that aren't there or are damaged.
        """

    def augmented(self, image: Tensor, bits: Tensor) -> Tensor:
        """See :class:`ImageDataModule`: zero-pad, crop, mirror."""
        return crop_and_flip(image, bits, self.padding, self.flip)

    def views(self, batch: Batch, bits: Tensor) -> Batch:
        """See :class:`ImageDataModule`; the strong views, if wanted, follow the weak ones. They are cropped anew."""
        weak = super().views(batch, bits)
        if not self.strong_view:
            return weak
        bits = further_bits(bits)
        strong = strong_view(self.augmented(batch.image, bits), bits)
        return Batch(torch.cat([weak.image, strong]), weak.target.repeat(2), weak.sample.repeat(2))

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any]]:
        """See :class:`ImageDataModule`."""
        # a gather from memory costs less than handing a batch over from another process
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        image, target = self._checked("train")
        train, val = self.split(len(image))
        test_image, test_target = self._checked("test")
        return (
            TensorImages(image, target, train),
            TensorImages(image, target, val) if len(val) else None,
            TensorImages(test_image, test_target, torch.arange(len(test_image))),
        )

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
