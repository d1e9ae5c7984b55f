"""Class folders of small images, decoded once into memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from lightning_biaskd.data.decoding import decoded
from lightning_biaskd.data.folders import check_same_classes, class_folders, readable_names
from lightning_biaskd.data.imagenet import checked_normalisation, side_before_crop
from lightning_biaskd.data.in_memory import InMemoryDataModule, Split
from lightning_biaskd.errors import UserError


class ImageFolderDataModule(InMemoryDataModule):
    """Class folders of images that fit in memory: ``root/train``, and ``root/test`` or ``root/val``.

    Each image is decoded once, resized and cropped to a square, and then stored with three bytes per pixel. Training
    views are padded, cropped and mirrored on the device, as for CIFAR. They can be counted, so a
    :class:`~lightning_biaskd.TeacherCache` works. For images larger than about 100 pixels, use
    :class:`ImageNetDataModule`, which decodes them in every epoch.

    The test set is ``test``, or ``val`` if there is no ``test``. Validation images are held out of ``train``. Each
    process stores all images.

    Args:
        root: folder of the splits. If it has a ``words.txt`` or ``LOC_synset_mapping.txt``, class names are read from
            it.
        *args: as of :class:`ImageDataModule`.
        image_size: height and width in pixels.
        resize: the shorter side before the centre crop; ``None`` for ``image_size``, so that square images are not
            cropped.
        padding: pixels of zero padding before the random crop; ``None`` for an eighth of ``image_size``.
        flip: whether to mirror at random.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        **kwargs: as of :class:`InMemoryDataModule`.

    Raises:
        UserError: the folders are missing, differ in their classes, or need more memory than is free; or an image
            cannot be read.
    """

    def __init__(
        self,
        root: str = "data",
        *args: Any,
        image_size: int = 32,
        resize: int | None = None,
        padding: int | None = None,
        flip: bool = True,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, *args, **kwargs)
        self.image_size = image_size
        self.resize = side_before_crop(image_size, image_size if resize is None else resize)
        self.padding = image_size // 8 if padding is None else padding
        if self.padding < 0:
            raise UserError(f"padding={padding}: give 0 pixels or more")
        self.flip = flip
        self.mean, self.std = checked_normalisation(mean, std)

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        root = Path(self.root)
        folder = root / "train"
        if split == "test":
            folder = root / "test" if (root / "test").is_dir() else root / "val"
        found = class_folders(folder)
        if split == "train":
            self.num_classes, self._folders = len(found.classes), found.classes
            self.class_names = readable_names(root, found.classes)
        else:
            check_same_classes(root / "train", self._folders, folder, found.classes)
        size = self.image_size
        check_memory(len(found.paths) * 3 * size**2, folder)
        pixels = torch.empty(len(found.paths), size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        rows = pixels.permute(0, 2, 3, 1).numpy()
        for row, path in zip(rows, found.paths, strict=True):  # threads take longer: small images hold the GIL
            row[:] = functional.center_crop(functional.resize(decoded(path), [self.resize]), [size, size])
        return pixels, torch.tensor(found.labels)


def check_memory(needed: int, folder: Path) -> None:
    """Images must fit into the free memory.

    Args:
        needed: bytes.
        folder: named in the error.

    Raises:
        UserError: they do not.
    """
    free = _free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"the images in '{folder}' need {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free: "
            "choose a smaller data.image_size, or ImageNetDataModule, which decodes images as they are needed"
        )


def _free_memory() -> int | None:
    """Free memory in bytes; ``None`` if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
