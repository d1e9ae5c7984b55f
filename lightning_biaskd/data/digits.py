"""Handwritten digits that ship with scikit-learn: nothing to download."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_biaskd.data.in_memory import InMemoryDataModule, Split


class DigitsDataModule(InMemoryDataModule):
    """1,797 grey 8x8 images of ten digits (scikit-learn's ``load_digits``; UCI, Alpaydin and Kaynak, 1998).

    The test set is a fixed 540 of them; ``val_split`` applies to the other 1,257. Views are shifted by up to one pixel
    and not mirrored. The arguments are those of :class:`ImageDataModule`; ``root`` and ``download`` are not needed.
    """

    num_classes = 10
    in_channels = 1
    image_size = 8
    class_names = tuple("0123456789")
    mean = (0.3060,)
    std = (0.3762,)
    padding = 1
    flip = False

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits  # imported late, because it takes a second

        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
        chosen = order[:540] if split == "test" else order[540:]
        image = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
        return image[chosen].unsqueeze(1), torch.from_numpy(digits.target).long()[chosen]
