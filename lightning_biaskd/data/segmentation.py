"""Images with a label for each pixel, decoded once into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lightning_biaskd.data.augment import color_jitter, scale_and_crop
from lightning_biaskd.data.batch import Batch, TensorImages
from lightning_biaskd.data.decoding import decoded
from lightning_biaskd.data.folders import SUFFIXES
from lightning_biaskd.data.image_folder import check_memory
from lightning_biaskd.data.imagenet import checked_normalisation
from lightning_biaskd.data.in_memory import InMemoryDataModule
from lightning_biaskd.errors import UserError
from lightning_biaskd.randomness.bits import further_bits

UNLABELLED = 255

Part = Literal["train", "val", "test"]


class SegmentationFolderDataModule(InMemoryDataModule):
    """Folders of images and of label maps: PNG files whose pixels are the numbers of classes, grey or palette.

    The image ``NAME`` and ``image_suffix`` belongs to the map ``NAME`` and ``label_suffix``, in the same subfolder.
    Every image is decoded once, scaled to fit into ``size`` without distortion, and filled up with pixels that have no
    label. Training views are scaled, shifted and mirrored together with their labels, on the device, from (seed, epoch,
    image) alone. They have no numbers, so a cache of the teacher is refused.

    ============ ====================================================================================================
    data         settings
    ============ ====================================================================================================
    CamVid       ``images: "{part}"``, ``labels: "{part}annot"``, 11 classes: ``configs/data/camvid.yaml``
    Pascal VOC   ``images: JPEGImages``, ``labels: SegmentationClass``,
                 ``lists: "ImageSets/Segmentation/{part}.txt"``, ``test: null``: ``configs/data/voc_segmentation.yaml``
    Cityscapes   ``images: "leftImg8bit/{part}"``, ``image_suffix: _leftImg8bit``, ``labels: "gtFine/{part}"``,
                 ``label_suffix: _gtFine_labelIds``, and which ids are classes: ``configs/data/cityscapes.yaml``
    ============ ====================================================================================================

    Args:
        root: folder of the data.
        batch_size: per process.
        val_split: part of the training images to hold out if ``val`` is ``None``, see :class:`ImageDataModule`.
        seed: of the validation split, and of order and views together with the run's, see :class:`ImageDataModule`.
        augment: whether training images are augmented.
        num_workers: processes that load data.
        classes: names of the C classes.
        images: folder of the images below ``root``, where ``{part}`` is the name of the part.
        labels: folder of the label maps.
        image_suffix: the end of an image's name, before the dot.
        label_suffix: the end of a map's name, before ``.png``.
        lists: a text file with the names of a part's images, one in a line; ``None`` takes all images of the folder.
        train: name of the training part.
        val: name of the validation part; ``None`` holds out ``val_split`` of the training images.
        test: name of the test part; ``None`` tests on the validation images.
        label_values: the value in a map that stands for each class; ``None`` for 0 to C - 1. Pixels with any other
            value have no label.
        size: height and width in pixels.
        scale: the smallest and the largest factor of random scaling; ``None`` for neither scaling nor shifting.
        flip: whether to mirror at random.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        color_jitter: largest change of the factors of brightness, contrast and saturation; 0 for none.
        train_size: number of training images, see :class:`InMemoryDataModule`.
        drop_last: leave out the last training batch of an epoch if it is not full.

    Attributes:
        ignore_index: 255, the label of pixels that count nowhere. Modules read it.
        score: the metric by which ``biaskd compare`` chooses.

    Raises:
        UserError: folders, lists or maps that are missing, two images of one name, a map of another size than its
            image, or a part without labels.
    """

    ignore_index = UNLABELLED
    score = "miou"
    image_size: tuple[int, int]  # type: ignore[assignment]  # other data are square

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        val_split: int | float = 0.1,
        seed: int = 0,
        augment: bool = True,
        num_workers: int = 0,
        *,
        classes: Sequence[str],
        images: str = "{part}",
        labels: str = "{part}annot",
        image_suffix: str = "",
        label_suffix: str = "",
        lists: str | None = None,
        train: str = "train",
        val: str | None = "val",
        test: str | None = "test",
        label_values: Sequence[int] | None = None,
        size: tuple[int, int] = (256, 256),
        scale: tuple[float, float] | None = (0.5, 2.0),
        flip: bool = True,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        color_jitter: float = 0.0,
        train_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(
            *(root, batch_size, val_split, seed, augment, num_workers),
            color_jitter=color_jitter,
            train_size=train_size,
            drop_last=drop_last,
        )
        values = range(len(classes)) if label_values is None else label_values
        if len(values) != len(classes) or not all(0 <= value <= 255 for value in values) or len(classes) > UNLABELLED:
            raise UserError(
                f"label_values {list(values)}: give one number from 0 to 255 for each of {len(classes)} classes"
            )
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise UserError(f"scale={list(scale)}: give the smallest and the largest factor, above 0")
        self.class_names, self.num_classes = list(classes), len(classes)
        self.images, self.labels, self.lists = images, labels, lists
        self.image_suffix, self.label_suffix = image_suffix, label_suffix
        self.parts: Mapping[Part, str | None] = {"train": train, "val": val, "test": test}
        self.image_size = size
        self.scale = scale
        self.flip = flip
        self.mean, self.std = checked_normalisation(mean, std)
        self._numbers = np.full(256, UNLABELLED, np.uint8)
        self._numbers[list(values)] = np.arange(len(classes), dtype=np.uint8)

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any]]:
        train, val, test = (self._read(part) for part in ("train", "val", "test"))
        assert train is not None
        if val is None:
            kept, held_out = self.split(len(train[0]))
            validation = TensorImages(*train, held_out) if len(held_out) else None
        else:
            self.num_samples = len(train[0])
            kept, validation = torch.arange(len(train[0])), _all(val)
        if test is None and validation is None:
            raise UserError(
                "there is nothing to test on: name a test or val part, or hold out some images by val_split"
            )
        tested = validation if test is None else _all(test)
        assert tested is not None
        return TensorImages(*train, self._subset(kept)), validation, tested

    def read(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) and label maps (N, H, W), both uint8."""
        found = self._read(split)
        if found is None:
            raise UserError(f"there is no {split} part")
        return found

    def _read(self, part: Part) -> tuple[Tensor, Tensor] | None:
        name = self.parts[part]
        if name is None:
            return None
        pairs = self._pairs(name)
        height, width = self.image_size
        check_memory(4 * len(pairs) * height * width, Path(self.root))
        pixels = torch.zeros(len(pairs), height, width, 3, dtype=torch.uint8)
        labels = torch.full((len(pairs), height, width), UNLABELLED, dtype=torch.uint8)
        for number, (image_path, label_path) in enumerate(pairs):
            image, label = decoded(image_path), self._label_map(label_path)
            if image.size != label.size:
                raise UserError(f"'{label_path}' is {label.size}, its image {image.size}: they must be of one size")
            share = min(height / image.height, width / image.width)
            fitted = round(image.width * share), round(image.height * share)
            if fitted != image.size:
                image = image.resize(fitted, Image.Resampling.BILINEAR)
                label = label.resize(fitted, Image.Resampling.NEAREST)
            pixels[number, : fitted[1], : fitted[0]] = torch.from_numpy(np.array(image))
            labels[number, : fitted[1], : fitted[0]] = torch.from_numpy(np.array(label))
        absent = self._absent(labels)
        if len(absent) == self.num_classes:
            raise UserError(
                f"no pixel of part {name!r} has a label of the {self.num_classes} classes: check label_values"
            )
        if absent and part == "train":
            rank_zero_warn(f"no pixel of part {name!r} has a label of {', '.join(absent)}: check label_values")
        return pixels.permute(0, 3, 1, 2), labels

    def _absent(self, labels: Tensor) -> list[str]:
        there = {int(number) for label in labels for number in label.unique()}
        return [name for number, name in enumerate(self.class_names or ()) if number not in there]

    def _pairs(self, name: str) -> list[tuple[Path, Path]]:
        images, labels = (Path(self.root) / folder.format(part=name) for folder in (self.images, self.labels))
        for folder in (images, labels):
            if not folder.is_dir():
                raise UserError(f"there is no folder '{folder}': set data.root, or data.images and data.labels")
        keys = {
            path: str(path.relative_to(images).parent / path.stem.removesuffix(self.image_suffix))
            for path in sorted(images.rglob(f"*{self.image_suffix}.*"))
            if path.suffix.lower() in SUFFIXES and path.name[0] != "."
        }
        maps = {self._label_path(labels, key) for key in keys.values()}  # they may be in the same folder
        found: dict[str, Path] = {}
        for path, key in keys.items():
            if path in maps:
                continue
            if key in found:
                raise UserError(f"'{found[key]}' and '{path}' have one name and one label map: remove one of them")
            found[key] = path
        pairs = []
        for key in self._listed(name) if self.lists else found:
            label = self._label_path(labels, key)
            if key not in found or not label.is_file():
                raise UserError(f"'{label if key in found else images / key}' is missing: part {name!r} needs it")
            pairs.append((found[key], label))
        if not pairs:
            raise UserError(f"'{images}' holds no image whose name ends in {self.image_suffix!r}")
        return pairs

    def _label_path(self, labels: Path, key: str) -> Path:
        return labels / f"{key}{self.label_suffix}.png"

    def _listed(self, name: str) -> list[str]:
        path = Path(self.root) / str(self.lists).format(part=name)
        try:
            return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise UserError(f"the list '{path}' can't be read ({error.strerror})") from None

    def _label_map(self, path: Path) -> Image.Image:
        try:
            with Image.open(path) as file:
                if file.mode not in ("L", "P", "1"):
                    raise ValueError(f"its pixels are {file.mode}, and a label is one number of 8 bits")
                return Image.fromarray(self._numbers[np.asarray(file).astype(np.uint8)])
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"the label map '{path}' can't be used ({error}): replace it") from None

    def training_views(self, batch: Batch, bits: Tensor) -> Batch:
        """Views of images and labels, scaled, shifted and mirrored together."""
        if not self.augment:
            return batch._replace(target=batch.target.long())
        image, target = batch.image, batch.target
        if self.color_jitter:
            image = color_jitter(image, further_bits(bits + 2), self.color_jitter)
        image, target = scale_and_crop(image, target, bits, self.scale or (1.0, 1.0), self.flip, self.mean, UNLABELLED)
        return batch._replace(image=image, target=target)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch._replace(target=batch.target.long()) if isinstance(batch, Batch) else batch


def _all(pair: tuple[Tensor, Tensor]) -> TensorImages:
    return TensorImages(*pair, torch.arange(len(pair[0])))
