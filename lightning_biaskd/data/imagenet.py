"""ImageNet, or any data set laid out like it: a folder per class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightning_biaskd.data.base import ImageDataModule
from lightning_biaskd.data.batch import SeededViews
from lightning_biaskd.errors import UserError


class ImageNetDataModule(ImageDataModule):
    """ImageNet-1k (Deng et al., 2009; Russakovsky et al., 2015): ``root/train`` and ``root/val``, a folder per class.

    As its labelled test images aren't public, ``val`` is the test set here, and validation images are held out of
    ``train`` by ``val_split``. The recipe is the field's: training crops of random size and place, mirrored; evaluation
    on the centre ``image_size / resize`` of the image. The number of classes is that of the folders.

    Args:
        root: folder with ``train`` and ``val``.
        batch_size: per process.
        val_split: part of ``train`` held out: a share below 1, or a number of images; 0 for none.
        seed: of the validation split.
        augment: whether training images are augmented.
        num_workers: processes that decode images.
        image_size: height and width of what the network sees, in pixels.
        resize: the shorter side before the centre crop, in pixels.
        mix: mixes the images and labels of a training batch, see :class:`ImageDataModule`.

    Raises:
        UserError: the folders aren't there, or differ in their classes.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str = "data/imagenet",
        batch_size: int = 64,
        val_split: int | float = 0.01,
        seed: int = 0,
        augment: bool = True,
        num_workers: int = 8,
        image_size: int = 224,
        resize: int = 256,
        mix: nn.Module | None = None,
    ) -> None:
        super().__init__(root, batch_size, val_split, seed, augment, num_workers, mix=mix)
        self.image_size = image_size
        crops: list[Any] = [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
        centre: list[Any] = [v2.Resize(resize, antialias=True), v2.CenterCrop(image_size)]
        self._train_view = v2.Compose([*(crops if augment else centre), v2.PILToTensor()])
        self._test_view = v2.Compose([*centre, v2.PILToTensor()])

    def augmented(self, image: Tensor, bits: Tensor) -> Tensor:
        """As it is: these images are cropped as they are decoded."""
        return image

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any]]:
        """See :class:`ImageDataModule`."""
        train, test = self._folder("train", self._train_view), self._folder("val", self._test_view)
        if train.classes != test.classes:
            raise UserError(
                f"'{self.root}/train' and '{self.root}/val' hold different class folders: make them the same"
            )
        self.num_classes, self.class_names = len(train.classes), train.classes
        kept, held_out = self.split(len(train))
        val = _IndexedFolder(train.root, self._test_view)
        training = SeededViews(Subset(train, kept.tolist()))
        return training, Subset(val, held_out.tolist()) if len(held_out) else None, test

    def _folder(self, name: str, transform: Callable[[Any], Tensor]) -> _IndexedFolder:
        path = Path(self.root) / name
        try:
            return _IndexedFolder(str(path), transform)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"no class folders with images in '{path}' ({str(error).splitlines()[0]}): set data.root to the folder "
                "above train and val; ImageNet must be fetched by hand from image-net.org"
            ) from None


class _IndexedFolder(ImageFolder):  # type: ignore[misc]  # torchvision has no types
    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image, target = super().__getitem__(index)
        return torch.as_tensor(image), target, index
