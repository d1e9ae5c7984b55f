"""The batch that loaders yield, and data sets in memory that build it without Python code per image."""

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
        image: (B, D, H, W), uint8 from the loader, normalised floats after the transfer to the device.
        target: (B,) int64 labels, or (B, C) shares after mixing.
        index: (B,) int64, its index in the data set, for augmentation and for methods with a memory.
        view: (B,) int64, the number of each image's view, for a cache of the teacher's outputs. The number after the
            last view is the image without augmentation. ``None`` if views cannot be counted.
    """

    image: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    view: Tensor | None = None


class TensorImages(Dataset[Any]):
    """Images in memory or on an accelerator, fetched by one gather per batch.

    Args:
        image: (N, D, H, W) uint8. The memory is shared if it is channels-last, and copied otherwise.
        target: (N,) int64.
        index: (n,) the images to use.
    """

    def __init__(self, image: Tensor, target: Tensor, index: Tensor) -> None:
        self.image = image.contiguous(memory_format=torch.channels_last)
        self.target = target
        self.index = index

    def to(self, device: torch.device) -> None:
        """Moves images and labels to a device; the indices stay where the samplers are."""
        self.image, self.target = self.image.to(device), self.target.to(device)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        index = int(self.index[item])
        return self.image[index], int(self.target[index]), index

    def __getitems__(self, items: list[int]) -> Batch:
        return self.pick(self.index[torch.tensor(items)])

    def pick(self, index: Tensor) -> Batch:
        """The images with the given indices (B,), whether they are used or not."""
        there = index.to(self.image.device, non_blocking=True)
        pixels = self.image.permute(0, 2, 3, 1)
        image = pixels.flatten(1).index_select(0, there).view(-1, *pixels.shape[1:]).permute(0, 3, 1, 2)
        return Batch(image, self.target.index_select(0, there), index)


class SeededViews(Dataset[Any]):
    """Images augmented when they are fetched, from (seed, epoch, image) only, in whichever process.

    An item beyond the last one is another view of an image, see ``repeats`` of
    :class:`~lightning_biaskd.data.loader.EpochSampler`.

    Args:
        dataset: yields ``(image, target, index)``, and draws its augmentation from torch's random state.
        index: (n,) the images to use.
        views: how many numbered views an image has. An epoch draws one of them, and its number is yielded too. ``None``
            draws a new view in every epoch.
        seed: of the numbered views.
    """

    def __init__(self, dataset: Dataset[Any], index: Tensor, views: int | None = None, seed: int = 0) -> None:
        self.dataset = dataset
        self.index = index
        self.views = views
        self.seed = seed
        # shared, as workers live longer than an epoch
        self._seed_and_epoch = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def begin(self, seed: int, epoch: int) -> None:
        """Sets the epoch for all processes."""
        self._seed_and_epoch.copy_(torch.tensor([seed, epoch]))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> Any:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: list[int]) -> list[Any]:
        place = torch.tensor(items)
        index, repeat = self.index[place % len(self)], place // len(self)
        seed, epoch = self._seed_and_epoch.tolist()
        bits = random_bits(seed, epoch, index + (repeat << 40))
        numbers: list[tuple[int, ...]] = [()] * len(items)
        if self.views is not None:
            view = bits % self.views
            bits, numbers = random_bits(self.seed, view, index), [(number,) for number in view.tolist()]
        samples = []
        for image, drawn, number in zip(index.tolist(), bits.tolist(), numbers, strict=True):
            with drawing_from(drawn):
                samples.append((*self.dataset[image], *number))
        return samples


def collate(samples: Any) -> Batch:
    """Passes on a batch of :class:`TensorImages`, or builds one from single samples."""
    if isinstance(samples, Batch):
        return samples
    images, *numbers = zip(*samples, strict=True)
    channels_last = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)  # as decoders yield
    return Batch(channels_last, *map(torch.tensor, numbers))
