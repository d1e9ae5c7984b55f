"""CIFAR-10 and CIFAR-100, from torchvision's files."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from lightning_biaskd.data.in_memory import InMemoryDataModule, Split
from lightning_biaskd.errors import UserError


class CIFAR10DataModule(InMemoryDataModule):
    """50,000 and 10,000 colour 32x32 images of ten classes (Krizhevsky, 2009).

    ``root`` holds ``cifar-10-batches-py``, whose checksums are verified. Views are padded by 4 pixels, cropped and
    mirrored. The arguments are those of :class:`ImageDataModule`.
    """

    num_classes = 10
    image_size = 32
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    files: ClassVar[type[CIFAR10]] = CIFAR10

    def prepare_data(self) -> None:
        if self.download:
            self.files(self.root, download=True)

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """See :class:`InMemoryDataModule`."""
        try:
            files = self.files(self.root, train=split == "train")
        except RuntimeError:
            raise UserError(
                f"{self.files.__name__} is not in '{self.root}/{self.files.base_folder}', or damaged there: set "
                "data.root to the folder above it, or data.download to true to fetch it from "
                "www.cs.toronto.edu/~kriz/cifar.html"
            ) from None
        self.class_names = files.classes
        return torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(files.targets)


class CIFAR100DataModule(CIFAR10DataModule):
    """50,000 and 10,000 colour 32x32 images of a hundred classes (Krizhevsky, 2009).

    ``root`` holds ``cifar-100-python``, whose checksums are verified; the rest is as for CIFAR-10.
    """

    num_classes = 100
    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)
    files = CIFAR100
