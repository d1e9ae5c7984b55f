"""Images with boxes, in the form that torchvision's detectors take."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from lightning_biaskd.data.base import ImageDataModule
from lightning_biaskd.data.batch import SeededViews
from lightning_biaskd.data.decoding import decoded
from lightning_biaskd.errors import UserError

Part = Literal["train", "val", "test"]
BACKGROUND = "background"


class DetectionBatch(NamedTuple):
    """What the loaders of a detection data module yield.

    Attributes:
        image: B tensors (3, H, W), each of its own size; uint8 from the loader, in [0, 1] after the transfer.
        target: B mappings: ``boxes`` (n, 4) as (x1, y1, x2, y2) in pixels, ``labels`` (n,) int64 from 1, and
            ``iscrowd`` (n,) int64, 1 for boxes that an evaluation ignores.
        index: (B,) int64, the index of each image in its data set.
    """

    image: list[Tensor]
    target: list[dict[str, Tensor]]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class BoxedObject(NamedTuple):
    """An object in an image.

    Attributes:
        box: (x1, y1, x2, y2) in pixels.
        label: from 1.
        ignored: whether training leaves it out and an evaluation ignores it.
        place: where it is written, for messages.
    """

    box: tuple[float, float, float, float]
    label: int
    ignored: bool
    place: str


class BoxedImage(NamedTuple):
    """An image file and its objects.

    Attributes:
        path: of the image.
        size: width and height that the annotation tells; ``None`` for those of the image.
        objects: in the image.
    """

    path: Path
    size: tuple[int, int] | None
    objects: list[BoxedObject]


class DetectionDataModule(ImageDataModule):
    """Base of the data modules for object detection; a subclass implements :meth:`read`.

    Batches are :class:`~lightning_biaskd.data.detection.DetectionBatch`, which torchvision's detectors take:
    ``detector(batch.image, batch.target)``. The detectors themselves resize and normalise images. As in torchvision,
    class 0 is the background, and the classes of the data follow in the order of ``class_names``. Training views are
    mirrored from (seed, epoch, image) alone. An image without boxes is trained on as background.

    Objects that the annotation marks as difficult, or as a crowd, are left out of training. In an evaluation, they
    count neither as missed nor as found.

    Args:
        root: folder of the data.
        batch_size: per process.
        val_split: part of the training images to hold out if ``val`` is ``None``, as a share below 1 or a number.
        seed: of the validation split, the order and the augmentation.
        augment: whether training images are mirrored at random.
        num_workers: processes that decode images.
        drop_last: leave out the last training batch of an epoch if it is not full.
        train: name of the training part, which replaces ``{part}`` in the names of files and folders.
        val: name of the validation part; ``None`` holds out ``val_split`` of the training images.
        test: name of the test part; ``None`` tests on the validation images.
        drop_degenerate: leave out boxes without area, with a warning; otherwise they are refused.

    Attributes:
        num_classes: C + 1, as the detectors of torchvision count: the classes and the background.
        class_names: names of all of them, the background first.
        score: the metric by which ``biaskd compare`` chooses.

    Raises:
        UserError: files that are missing or damaged, classes that are not known, boxes without area, or an image of
            another size than its annotation tells.
    """

    score = "map"

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 8,
        val_split: int | float = 0.1,
        seed: int = 0,
        augment: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
        train: str = "train",
        val: str | None = "val",
        test: str | None = "test",
        drop_degenerate: bool = False,
    ) -> None:
        super().__init__(root, batch_size, val_split, seed, augment, num_workers, drop_last=drop_last)
        self.parts: Mapping[Part, str | None] = {"train": train, "val": val, "test": test}
        self.drop_degenerate = drop_degenerate

    @abstractmethod
    def read(self, part: str) -> Sequence[BoxedImage]:
        """The images of a part. It also sets ``class_names`` and ``num_classes``, the same for all parts."""

    def set_classes(self, names: Sequence[str]) -> None:
        """Sets the names of the classes, without the background."""
        self.class_names, self.num_classes = [BACKGROUND, *names], len(names) + 1

    def augmented(self, image: Tensor, bits: Tensor) -> Tensor:
        """Returns the images unchanged, because they are mirrored when they are read."""
        return image

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any]]:
        train, val, test = (self._part(part) for part in ("train", "val", "test"))
        assert train is not None
        self.num_samples, kept = len(train), torch.arange(len(train))
        if val is None:
            kept, held_out = self.split(len(train))
            val = [train[index] for index in held_out.tolist()]
        if not (val or test):
            raise UserError(
                "there is nothing to test on: name a test or val part, or hold out some images by val_split"
            )
        names = ", ".join(f"{number} {name}" for number, name in enumerate(cast("Sequence[str]", self.class_names)))
        rank_zero_info(f"classes of '{self.root}', in the order of a detector's outputs: {names}")
        training: Dataset[Any] = DetectionImages(train, training=True, flip=self.augment)
        validation = DetectionImages(val) if val else None
        tested = DetectionImages(test) if test else cast("DetectionImages", validation)
        return SeededViews(training, kept), validation, tested

    def _part(self, part: Part) -> list[BoxedImage] | None:
        name = self.parts[part]
        if name is None:
            return None
        given = self.read(name)
        items = [self._checked(item) for item in given]
        if not any(item.objects for item in items):
            raise UserError(f"no image of part {name!r} in '{self.root}' has a box: check the names of the parts")
        if dropped := sum(len(item.objects) for item in given) - sum(len(item.objects) for item in items):
            rank_zero_warn(f"{dropped} boxes of part {name!r} have no area and are left out")
        return items

    def _checked(self, item: BoxedImage) -> BoxedImage:
        """The boxes within the image; what has no area there is refused or left out."""
        width, height = item.size or _size_of(item.path)
        kept = []
        for place in item.objects:
            x1, y1, x2, y2 = place.box
            box = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
            if box[0] < box[2] and box[1] < box[3]:
                kept.append(place._replace(box=box))
            elif not self.drop_degenerate:
                raise UserError(
                    f"{place.place} has the box {list(place.box)}, which has no area in an image of {width}x{height}: "
                    "correct it, or set data.drop_degenerate to true to leave such boxes out"
                )
        return BoxedImage(item.path, (width, height), kept)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, DetectionBatch):
            return batch
        image = [pixels.float() / 255 for pixels in batch.image]
        trainer = self.trainer
        return batch._replace(image=image if trainer is None else trainer.precision_plugin.convert_input(image))

    @staticmethod
    def collate(samples: Any) -> DetectionBatch:
        """Builds a batch from single samples."""
        images, targets, indices = zip(*samples, strict=True)
        return DetectionBatch(list(images), list(targets), torch.tensor(indices))


class DetectionImages(Dataset[Any]):
    """Images with their boxes, decoded when they are fetched.

    Args:
        items: the images.
        training: leave out what is to be ignored.
        flip: mirror half of the images, drawn from torch's random state.

    Raises:
        UserError: an image that can't be read, or of another size than its annotation tells.
    """

    def __init__(self, items: Sequence[BoxedImage], training: bool = False, flip: bool = False) -> None:
        self.items = items
        self.training = training
        self.flip = flip

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor], int]:
        item = self.items[index]
        picture = decoded(item.path)
        if picture.size != item.size:
            width, height = cast("tuple[int, int]", item.size)
            raise UserError(
                f"the image '{item.path}' is {picture.width}x{picture.height} and its annotation says {width}x{height}"
                ": correct one of them"
            )
        image = functional.pil_to_tensor(picture)
        objects = [place for place in item.objects if not (self.training and place.ignored)]
        target = {
            "boxes": torch.tensor([place.box for place in objects]).view(-1, 4),
            "labels": torch.tensor([place.label for place in objects], dtype=torch.long),
            "iscrowd": torch.tensor([place.ignored for place in objects], dtype=torch.long),
        }
        if self.flip and torch.rand(()) < 0.5:
            image, target["boxes"] = image.flip(2), mirrored(target["boxes"], image.shape[2])
        return image, target, index


def mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes (n, 4) of an image that is mirrored horizontally.

    Example:
        >>> mirrored(torch.tensor([[1.0, 2.0, 4.0, 6.0]]), width=10)
        tensor([[6., 2., 9., 6.]])
    """
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], 1)


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as file:
            return file.size
    except OSError as error:
        raise UserError(f"the image '{path}' can't be used ({error}): replace it, or remove its annotation") from None
