"""ImageNet, or any data set with the same layout: one folder per class, or shards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torchvision.transforms import v2

from lightning_biaskd.data.batch import SeededViews
from lightning_biaskd.data.crops import RandomResizedCrop
from lightning_biaskd.data.decoding import Decoder, decode, installed_decoder
from lightning_biaskd.data.encoded import EncodedImages, opened
from lightning_biaskd.data.file_views import FileViews, View
from lightning_biaskd.data.folders import check_same_classes, readable_names
from lightning_biaskd.data.numbered import checked_views
from lightning_biaskd.data.prepared import Format
from lightning_biaskd.errors import UserError
from lightning_biaskd.files import fingerprint


class ImageNetDataModule(FileViews):
    """ImageNet-1k (Deng et al., 2009; Russakovsky et al., 2015): ``root/train`` and ``root/val``, a folder per class.

    The labels of ImageNet's test images are not public, so ``val`` is the test set here, and validation images are held
    out of ``train`` by ``val_split``. Augmentation is the usual one: training uses mirrored crops of random size and
    position, and evaluation the centre ``image_size / resize`` of the image. The number of classes is the number of
    folders. Images are decoded as in torchvision's loader, see :func:`~lightning_biaskd.data.decoding.decoded`.

    ``biaskd prepare`` stores the images once in the size that training needs, which makes decoding several times
    faster, as folders or as litdata shards.

    Args:
        root: folder with ``train`` and ``val``. If it has a ``words.txt`` or ``LOC_synset_mapping.txt``, class names
            are read from it.
        batch_size: per process.
        val_split: part of ``train`` to hold out, as a share below 1 or a number of images; 0 for none.
        seed: of the validation split.
        augment: whether training images are augmented.
        num_workers: processes that decode images.
        image_size: height and width of the network's input, in pixels.
        resize: the shorter side before the centre crop, in pixels; ``None`` for 256/224 of ``image_size``.
        views: draw from this number of fixed views per image; ``None`` draws a new view in every epoch. A cache of the
            teacher stores one output per view.
        repeats: repeated augmentation (Hoffer et al., *Augment Your Batch*, CVPR 2020, arXiv 1901.09335): each image
            of an epoch is shown this number of times, in different views of one batch over all processes. An epoch is
            as long as without, so it shows ``1 / repeats`` of the images. 3 is the usual choice for transformers.
        mix: mixes the images and labels of a training batch, see :class:`ImageDataModule`.
        drop_last: leave out the last training batch of an epoch if it is not full.
        prefetch_factor: batches that each worker prepares ahead; ``None`` for torch's default.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        format: what ``train`` and ``val`` hold: class folders, shards of litdata, or tar files of webdataset.
        decoder: of JPEG files; ``None`` for torchcodec if it is installed and Pillow otherwise. Both decode the same
            pixels. Pillow's views are those of torchvision's transforms bit by bit, and torchcodec's differ from them
            by rounding, 1 or 2 of 255, because they are resized as tensors.

    Raises:
        UserError: the folders are missing or differ in their classes, an image cannot be read, or a package is missing.
    """

    def __init__(
        self,
        root: str = "data/imagenet",
        batch_size: int = 64,
        val_split: int | float = 0.01,
        seed: int = 0,
        augment: bool = True,
        num_workers: int = 8,
        image_size: int = 224,
        resize: int | None = None,
        views: int | None = None,
        repeats: int = 1,
        mix: nn.Module | None = None,
        drop_last: bool = False,
        prefetch_factor: int | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        format: Format = "folders",
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(root, batch_size, val_split, seed, augment, num_workers, mix=mix, drop_last=drop_last)
        self.image_size = image_size
        self.views = checked_views(views)
        if repeats < 1:
            raise UserError(f"repeats={repeats} shows no image: give 1 at least")
        self.repeats = repeats
        self.prefetch_factor = prefetch_factor
        self.format = format
        self.decoder = installed_decoder(decoder)
        self.mean, self.std = checked_normalisation(mean, std)
        crops: list[Any] = [RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
        centre: list[Any] = [v2.Resize(side_before_crop(image_size, resize), antialias=True), v2.CenterCrop(image_size)]
        self.train_view = v2.Compose([*(crops if augment else centre), v2.PILToTensor()])
        self.test_view = v2.Compose([*centre, v2.PILToTensor()])

    def augmented(self, image: Tensor, bits: Tensor) -> Tensor:
        """Returns the images unchanged, because they are cropped while they are decoded."""
        return image

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any]]:
        train, test = (opened(self.root, split, self.format) for split in ("train", "val"))
        check_same_classes(f"{self.root}/train", train.classes, f"{self.root}/val", test.classes)
        self.num_classes, self.class_names = len(train.classes), readable_names(Path(self.root), train.classes)
        kept, held_out = self.split(len(train))
        self.files = _Files(train, self.decoder, self.train_view)
        training = SeededViews(self.files, kept, self.view_count, self.seed)
        val = Subset(_Files(train, self.decoder, self.test_view), held_out.tolist()) if len(held_out) else None
        return training, val, _Files(test, self.decoder, self.test_view)


class _Files(Dataset[Any]):
    def __init__(self, images: EncodedImages, decoder: Decoder, view: View) -> None:
        self.images = images
        self.decoder = decoder
        self.view = view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        content, label, name = self.images[index]
        return torch.as_tensor(self.view(decode(content, name, self.decoder))), label, index

    def decoded(self, index: int) -> Image.Image | Tensor:
        """The image with the given index."""
        content, _, name = self.images[index]
        return decode(content, name, self.decoder)

    def fingerprint(self) -> str:
        """Identifies the images and who decodes them."""
        return fingerprint(self.decoder, self.images.fingerprint())


def side_before_crop(image_size: int, resize: int | None) -> int:
    """The shorter side before a centre crop of ``image_size``: ``resize``, or else 256/224 of it.

    Raises:
        UserError: the crop would be larger than the image.

    Example:
        >>> side_before_crop(224, None), side_before_crop(32, 36)
        (256, 36)
    """
    side = round(image_size * 256 / 224) if resize is None else resize
    if image_size < 1 or side < image_size:
        raise UserError(
            f"resize={resize} gives no centre crop of image_size={image_size}: choose resize not below image_size, or "
            "null for 256/224 of it"
        )
    if (kept := (image_size / side) ** 2) < 0.5:
        warnings.warn(
            f"image_size={image_size} and resize={side}: evaluation sees only the centre {kept:.0%} of a square image; "
            f"leave resize out for {round(image_size * 256 / 224)}",
            stacklevel=3,
        )
    return side


def checked_normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Checks the mean and standard deviation of colour images, three numbers each.

    Raises:
        UserError: another number of channels, a deviation that is not positive, or means outside [0, 1].
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not all(0 <= value <= 1 for value in mean):
        raise UserError(f"mean {list(mean)} and std {list(std)}: give three numbers each, of pixels in [0, 1]")
    return tuple(mean), tuple(std)
