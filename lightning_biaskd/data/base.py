"""The base of all data modules. A data set adds a few constants and reads its files."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_biaskd.data.batch import Batch, TensorImages, collate
from lightning_biaskd.data.loader import EpochSampler, ImageLoader, ResumableLoader
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.guarded_loading import GuardedLoading
from lightning_biaskd.randomness.bits import random_bits
from lightning_biaskd.randomness.state import drawing_from

SEEN_THROUGH = ("collate", "on_before_batch_transfer", "on_after_batch_transfer", "training_views", "normalized")
"""The methods through which training sees an image; views are not countable where a subclass overrides one."""


def overrides(data: object, base: type, *methods: str) -> bool:
    """Whether the class of a data module has other methods of these names than one of its base classes."""
    return any(getattr(type(data), name) is not getattr(base, name) for name in methods)


class ImageDataModule(GuardedLoading, LightningDataModule):
    """Base of the data modules: splits, loaders, and normalisation and augmentation on the device.

    A subclass sets the constants and implements :meth:`datasets`. For data that fit in memory, subclass
    :class:`InMemoryDataModule` instead. Views depend on (seed, epoch, image) only, so they are the same on every rank,
    with any number of workers and in a resumed run.

    Args:
        root: folder that holds the data.
        batch_size: per process.
        val_split: part of the training set to hold out for validation, as a share below 1 or a number of images; 0 for
            none.
        seed: determines the validation split and, together with the seed of ``seed_everything``, order and
            augmentation.
        augment: whether training images are augmented, on the device.
        num_workers: processes that load data; 0 loads in the training process.
        download: download the data to ``root`` if they are missing.
        drop_last: leave out the last training batch of an epoch if it is not full. Batch normalisation needs this if
            that batch would have a single image.
        mix: mixes the images and labels of a training batch, after augmentation: ``MixUp`` or ``CutMix`` of
            ``torchvision.transforms.v2``, or a ``RandomChoice`` of them. Labels become shares (B, C), which
            :class:`~lightning_biaskd.ClassificationModule` accepts and distillation does not. The mixing depends on
            ``seed``, the epoch, the index of the batch and the rank.

    Attributes:
        num_classes: C, the number of classes.
        in_channels: of the images.
        image_size: height and width in pixels.
        class_names: names of the C classes; ``None`` if they are not known, or not yet.
        mean: per channel, of pixels in [0, 1].
        std: standard deviation per channel, of pixels in [0, 1].
        num_samples: number of training images, including those held out for validation.

    Raises:
        UserError: data that are missing or damaged, labels out of range, or an impossible ``val_split`` or
            ``batch_size``.
    """

    num_classes: int
    in_channels: ClassVar[int] = 3
    image_size: int
    class_names: Sequence[str] | None = None
    mean: Sequence[float]
    std: Sequence[float]

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
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: a batch holds one image at least")
        if not isinstance(augment, bool):
            raise UserError(f"augment={augment!r}: choose true or false")
        self.root = root if "://" in root else str(Path(root).expanduser())
        self.batch_size = batch_size
        self.val_split = val_split
        self.seed = seed
        self.augment = augment
        self.num_workers = num_workers
        self.download = download
        self.mix = mix
        self.drop_last = drop_last
        self.prefetch_factor: int | None = None
        self.repeats = 1
        self.num_samples: int | None = None
        self._affine: tuple[Tensor, Tensor] | None = None
        self._bits: Tensor | None = None  # of the batch that is being transferred
        self._training: ResumableLoader | None = None
        self._resumed: dict[str, int] | None = None
        self.train_set: Dataset[Any] | None = None
        self.val_set: Dataset[Any] | None = None
        self.test_set: Dataset[Any] | None = None

    @abstractmethod
    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any]]:
        """The training, validation (``None`` for none) and test sets, with items ``(image, target, index)``."""

    @abstractmethod
    def augmented(self, image: Tensor, bits: Tensor) -> Tensor:
        """Draws a training view of each image (B, D, H, W) from random bits (B,)."""

    def split(self, size: int) -> tuple[Tensor, Tensor]:
        """Indices of the training and validation images, by ``val_split`` and ``seed``."""
        self.num_samples = size
        if isinstance(self.val_split, float) and not 0 <= self.val_split < 1:
            raise UserError(f"val_split={self.val_split}: give a share below 1, or a whole number of images")
        held_out = round(self.val_split * size) if self.val_split < 1 else int(self.val_split)
        if not 0 <= held_out < size:
            raise UserError(
                f"val_split={self.val_split} of {size} training images leaves none to train on: choose less"
            )
        order = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))
        return order[held_out:].sort().values, order[:held_out].sort().values

    def setup(self, stage: str | None = None) -> None:
        if stage == "fit":  # a new run; if it goes on from a checkpoint, load_state_dict is called after this
            self._resumed = self._training = None
        if self.train_set is None:
            self.train_set, self.val_set, self.test_set = self.datasets()
        if self.val_set is None:  # asked for, so nothing to be warned of
            warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, Batch) and self.trainer is not None and self.trainer.training:
            # on the CPU: two dozen operations on a few numbers, each of which takes a GPU as long as one on all images
            self._bits = self._draw(batch.index)
        return batch

    def _draw(self, index: Tensor) -> Tensor:
        return random_bits(self.drawing_seed, cast("Trainer", self.trainer).current_epoch, index)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, Batch):
            return batch
        trainer = self.trainer
        if trainer is not None and trainer.training:
            bits, self._bits = self._bits, None
            bits = self._draw(batch.index) if bits is None else bits.to(batch.image.device, non_blocking=True)
            batch = self.training_views(batch, bits)
        elif trainer is not None and trainer.validating and self.view_count is not None:
            batch = batch._replace(view=torch.full_like(batch.index, self.view_count))  # the image as it is
        batch = batch._replace(image=self.normalized(batch.image))
        if self.mix is None or trainer is None or not trainer.training:
            return batch
        return self.mixed(batch, trainer, self.mix)

    @property
    def view_count(self) -> int | None:
        """The number of training views per image; ``None`` if they cannot be counted."""
        return None

    def training_views(self, batch: Batch, bits: Tensor) -> Batch:
        """Draws the views that a training step sees from random bits (B,), not yet normalised."""
        return batch._replace(image=self.augmented(batch.image, bits)) if self.augment else batch

    def mixed(self, batch: Batch, trainer: Trainer, mix: nn.Module) -> Batch:
        """Applies ``mix`` to a training batch; labels become shares (B, C)."""
        number = (trainer.fit_loop.batch_idx + 1) * trainer.world_size + trainer.global_rank
        seed = random_bits(self.drawing_seed, trainer.current_epoch, torch.tensor([number]))
        with drawing_from(int(seed)):
            try:
                image, target = mix(batch.image, F.one_hot(batch.target, self.num_classes).to(batch.image))
            except ValueError as error:
                raise UserError(f"{type(mix).__name__} can't mix this batch: {error}") from error
        return batch._replace(image=image, target=target)

    def normalized(self, image: Tensor) -> Tensor:
        """Converts pixels (B, D, H, W) in 0…255 to normalised floats in the Trainer's precision."""
        scale, shift = self._affine or (None, None)
        if scale is None or shift is None or scale.shape[1:] != image.shape[1:] or scale.device != image.device:
            # once, as a copy waits for the device; as large as an image, as a row of numbers is faster than three
            mean, std = torch.tensor([self.mean, self.std], device=image.device)[:, None, :, None, None]
            whole = torch.ones_like(image[:1], dtype=torch.float32)
            scale, shift = self._affine = (whole / (255 * std), -whole * mean / std)
        image = image.to(torch.float32, copy=True).mul_(scale).add_(shift)
        # the Trainer has converted the batch before, when it held integers
        return image if self.trainer is None else cast("Tensor", self.trainer.precision_plugin.convert_input(image))

    def train_dataloader(self) -> DataLoader[Any]:
        ranks, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        dataset = cast("Dataset[Any]", self.train_set)
        sampler = EpochSampler(dataset, ranks, rank, shuffle=True, seed=self.drawing_seed)
        sampler.repeats = self.repeats
        options = {"sampler": sampler, "drop_last": self.drop_last}
        loader = cast("ResumableLoader", self.loader(dataset, ResumableLoader, **options))
        if not len(loader):
            raise UserError(
                f"drop_last leaves no batch: a process has {len(sampler)} training images and batch_size is "
                f"{self.batch_size}; choose a smaller batch_size"
            )
        if self._resumed is not None:
            loader.load_state_dict(self._resumed)
        self._training = loader
        return loader

    def state_dict(self) -> dict[str, int]:
        """The position of training within its epoch, for the checkpoint."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets training continue from that position."""
        self._resumed = state_dict

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return [] if self.val_set is None else self.loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    @property
    def drawing_seed(self) -> int:
        """The seed of order and augmentation: ``seed``, combined with the run's if ``seed_everything`` set one."""
        run = os.environ.get("PL_GLOBAL_SEED", "")
        return ((self.seed << 40) + (int(run if run.isdecimal() else 0) << 16)) % 2**62  # epochs are added to it

    def loader(
        self, dataset: Dataset[Any] | None, kind: type[ImageLoader] = ImageLoader, **kwargs: Any
    ) -> DataLoader[Any]:
        """A loader that yields :class:`Batch`; ``kwargs`` go to torch's DataLoader."""
        resident = isinstance(dataset, TensorImages) and self._move(dataset)
        return kind(
            cast("Dataset[Any]", dataset),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available() and not resident,
            collate_fn=self.collate,
            **kwargs,
        )

    @staticmethod
    def collate(samples: Any) -> Any:
        """Builds a batch of what the data set yields."""
        return collate(samples)

    def _move(self, dataset: TensorImages) -> bool:
        """Moves a data set to the GPU if it fits in a quarter of the free memory, and returns whether it did."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda" or self.num_workers:
            return False
        if dataset.image.device != device and dataset.image.nbytes <= torch.cuda.mem_get_info(device)[0] / 4:
            dataset.to(device)
        return dataset.image.is_cuda
