"""CIFAR-10 and CIFAR-100, from the files of their authors."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from lightning_biaskd.data.in_memory import InMemoryDataModule, Split
from lightning_biaskd.errors import UserError

_ALLOWED = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
}


class CIFAR10DataModule(InMemoryDataModule):
    """50,000 and 10,000 colour 32x32 images of ten classes (Krizhevsky, 2009).

    ``root`` contains ``cifar-10-batches-py``. Only arrays and plain values are read from these files, so no code in
    them can run. Views are padded by 4 pixels, cropped and mirrored.

    Args:
        *args: as of :class:`ImageDataModule`.
        verify: whether the files must have the published checksums.
        **kwargs: as of :class:`InMemoryDataModule`.
    """

    num_classes = 10
    image_size = 32
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    files: ClassVar[type[CIFAR10]] = CIFAR10

    def __init__(self, *args: Any, verify: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verify = verify

    def prepare_data(self) -> None:
        if self.download:
            self.files(self.root, download=True)

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        listed = self.files.train_list if split == "train" else self.files.test_list
        meta = self.files.meta
        self.class_names = self._part(meta["filename"], meta["md5"], meta["key"])[0]
        images, labels = zip(*(self._part(*names, "data", "labels", "fine_labels") for names in listed), strict=True)
        try:
            pixels = np.concatenate(images).reshape(-1, 3, 32, 32)
            return torch.from_numpy(pixels), torch.tensor([label for part in labels for label in part])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the {split} files of {self.files.__name__} in '{self.root}' are damaged: {error}"
            ) from None

    def _part(self, name: str, md5: str, *keys: str) -> list[Any]:
        """The values of one file, for those of the keys that it has."""
        path = Path(self.root, self.files.base_folder, name)
        if not path.is_file():
            raise UserError(
                f"{self.files.__name__} is not in '{path.parent}', where {name} is missing: set data.root to the "
                "folder above it, or data.download to true to fetch it from www.cs.toronto.edu/~kriz/cifar.html"
            )
        content = path.read_bytes()
        if self.verify and hashlib.md5(content).hexdigest() != md5:
            raise UserError(
                f"'{path}' is not the published file, or damaged there: fetch it from "
                "www.cs.toronto.edu/~kriz/cifar.html, or set data.verify to false to use it as it is"
            )
        try:
            held = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
            found = [held[key] for key in keys if key in held]
        except Exception as error:  # a damaged pickle raises errors of many kinds
            raise UserError(
                f"'{path}' can't be read ({error}): fetch it from www.cs.toronto.edu/~kriz/cifar.html"
            ) from None
        if len(found) != (1 if len(keys) == 1 else 2):
            raise UserError(f"'{path}' is no file of {self.files.__name__}: it has no {' or '.join(keys)}")
        return found


class CIFAR100DataModule(CIFAR10DataModule):
    """50,000 and 10,000 colour 32x32 images of a hundred classes (Krizhevsky, 2009).

    ``root`` contains ``cifar-100-python``; everything else is as for CIFAR-10.
    """

    num_classes = 100
    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)
    files = CIFAR100


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only arrays and plain values are read")
        return super().find_class(module, name)
