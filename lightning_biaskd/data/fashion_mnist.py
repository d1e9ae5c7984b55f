"""Fashion-MNIST, from its idx files, compressed or not."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

from lightning_biaskd.data.in_memory import InMemoryDataModule, Split
from lightning_biaskd.errors import UserError

_PREFIX = {"train": "train", "test": "t10k"}


class FashionMNISTDataModule(InMemoryDataModule):
    """60,000 and 10,000 grey 28x28 images of ten kinds of clothing (Xiao, Rasul, Vollgraf, 2017, arXiv 1708.07747).

    ``root`` is a folder with the four idx files, compressed (``.gz``) or not, or the parent of torchvision's
    ``FashionMNIST/raw``. Debian's package ``dataset-fashion-mnist`` puts them in ``/usr/share/datasets/fashion-mnist``.
    Views are padded by 4 pixels, cropped and mirrored. The arguments are those of :class:`ImageDataModule`.
    """

    num_classes = 10
    class_names = tuple(FashionMNIST.classes)
    in_channels = 1
    image_size = 28
    mean = (0.2860,)
    std = (0.3530,)

    def prepare_data(self) -> None:
        if self.download:
            FashionMNIST(self.root, download=True)

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        image = self._idx(f"{_PREFIX[split]}-images-idx3-ubyte", dimensions=3)
        target = self._idx(f"{_PREFIX[split]}-labels-idx1-ubyte", dimensions=1)
        return image.unsqueeze(1), target.long()

    def _idx(self, name: str, dimensions: int) -> Tensor:
        folders = (Path(self.root), Path(self.root) / "FashionMNIST" / "raw")
        path = next((p for folder in folders for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
        if path is None:
            raise UserError(
                f"no Fashion-MNIST file {name}[.gz] in {self.root!r}: set data.root to its folder (Debian's package "
                "dataset-fashion-mnist: /usr/share/datasets/fashion-mnist), or data.download to true to fetch it from "
                "github.com/zalandoresearch/fashion-mnist"
            )
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            header = np.frombuffer(content, ">i4", count=1 + dimensions)
            if header[0] != 0x0800 + dimensions:  # magic number: unsigned bytes, and how many dimensions
                raise ValueError("not an idx file")
            return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 * len(header)).reshape(header[1:]).copy())
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): download it again") from None
