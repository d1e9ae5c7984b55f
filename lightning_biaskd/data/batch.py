"""What loaders yield, and data sets in memory that yield it without Python per image."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_biaskd.randomness.bits import random_bits
from lightning_biaskd.randomness.state import drawing_from


class Batch(NamedTuple):
    """What every loader yields.

    Attributes:
        image: (B, D, H, W), uint8 off the loader, normalised float once on the device.
        target: (B,) int64 labels; (B, C) shares once they are mixed.
        index: (B,) int64, its index in the data set, for augmentation and for methods with a memory.
        view: (B,) int64, which of its countable views each image shows, for a cache of the teacher's answers; the
            number after the last is the image as it is. ``None`` where views can't be counted.
    """

    image: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    view: Tensor | None = None


class TensorImages(Dataset[Any]):
    """Images in memory, fetched by one gather per batch; on an accelerator, if they were put there.

    Args:
        image: (N, D, H, W) uint8, shared and not copied if its memory is channels-last.
        target: (N,) int64.
        index: (n,) the images to use.
    """

    def __init__(self, image: Tensor, target: Tensor, index: Tensor) -> None:
        self.image = image.contiguous(memory_format=torch.channels_last)
        self.target = target
        self.index = index

    def to(self, device: torch.device) -> None:
        """Moves images and labels there; the numbers of the images stay where samplers are."""
        self.image, self.target = self.image.to(device), self.target.to(device)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        index = int(self.index[item])
        return self.image[index], int(self.target[index]), index

    def __getitems__(self, items: list[int]) -> Batch:
        return self.pick(self.index[torch.tensor(items)])

    def pick(self, index: Tensor) -> Batch:
        """The images of those numbers (B,), used or not."""
        there = index.to(self.image.device, non_blocking=True)
        pixels = self.image.permute(0, 2, 3, 1)
        image = pixels.flatten(1).index_select(0, there).view(-1, *pixels.shape[1:]).permute(0, 3, 1, 2)
        return Batch(image, self.target.index_select(0, there), index)


class SeededViews(Dataset[Any]):
    """Images that are augmented as they are fetched, each drawn by (seed, epoch, item), whichever process fetches it.

    Args:
        dataset: draws from torch's random state; its items are ``(image, target, index)``.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        # shared, as workers live longer than an epoch
        self._seed_and_epoch = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def begin(self, seed: int, epoch: int) -> None:
        """Tells all processes that an epoch begins."""
        self._seed_and_epoch.copy_(torch.tensor([seed, epoch]))

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, item: int) -> Any:
        seed, epoch = self._seed_and_epoch.tolist()
        with drawing_from(int(random_bits(seed, epoch, torch.tensor([item])))):
            return self.dataset[item]


def collate(samples: Any) -> Batch:
    """A batch as it comes from :class:`TensorImages`, or one made of single samples."""
    if isinstance(samples, Batch):
        return samples
    images, targets, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(targets), torch.tensor(indices))
