"""Object detection on Pascal VOC, or any data set whose annotations are in its XML format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lightning_biaskd.data.detection import BoxedImage, BoxedObject, DetectionDataModule
from lightning_biaskd.data.folders import SUFFIXES
from lightning_biaskd.errors import UserError

_SIDES = ("xmin", "ymin", "xmax", "ymax")


class VOCDetectionDataModule(DetectionDataModule):
    """Object detection on Pascal VOC (Everingham et al., 2010), or any data set in its XML format, as labelImg writes.

    The corners of a box are pixels that belong to it, counted from 1, as in the VOC devkit: the box from 1 to the width
    of the image covers all of it. Objects marked as difficult are left out of training and ignored in an evaluation.

    Args:
        root: folder of the data.
        *args: as of :class:`DetectionDataModule`.
        classes: names of the classes, in the order of the detector's outputs after the background.
        lists: a text file below ``root`` with the names of a part's images, one in a line; ``None`` takes every
            annotation of the folder.
        images: folder of the images.
        annotations: folder of the XML files.
        **kwargs: as of :class:`DetectionDataModule`.

    Raises:
        UserError: a list, annotation or image that is missing or damaged, an object of another class, or as the base
            class.
    """

    def __init__(
        self,
        root: str = "data/voc",
        *args: Any,
        classes: Sequence[str],
        lists: str | None = "ImageSets/Main/{part}.txt",
        images: str = "JPEGImages",
        annotations: str = "Annotations",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, *args, **kwargs)
        self.classes = list(classes)
        self.set_classes(self.classes)
        self.lists = lists
        self.images = images
        self.annotations = annotations

    def read(self, part: str) -> Sequence[BoxedImage]:
        folder = Path(self.root, self.images.format(part=part))
        if not folder.is_dir():
            raise UserError(f"there is no folder '{folder}': set data.root and data.images")
        images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
        annotations = Path(self.root, self.annotations.format(part=part))
        names = self._listed(part) if self.lists else sorted(path.stem for path in annotations.glob("*.xml"))
        return [self._read(annotations / f"{name}.xml", images.get(name, folder / f"{name}.jpg")) for name in names]

    def _listed(self, part: str) -> list[str]:
        path = Path(self.root, str(self.lists).format(part=part))
        try:
            return [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise UserError(
                f"the list '{path}' can't be read ({error.strerror}): set data.root and data.lists"
            ) from None

    def _read(self, path: Path, image: Path) -> BoxedImage:
        if not image.is_file():
            raise UserError(f"the image of '{path}' is missing: there is no '{image}'")
        objects = []
        try:
            root = ElementTree.parse(path).getroot()
            width, height = (int(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
            for place in root.iter("object"):
                name, difficult = (place.findtext(tag, "0").strip() for tag in ("name", "difficult"))
                if name not in self.classes:
                    raise UserError(
                        f"'{path}' has an object of class {name!r}, which is not among data.classes: add it"
                    )
                x1, y1, x2, y2 = (float(place.findtext(f"bndbox/{side}", "")) for side in _SIDES)
                label = 1 + self.classes.index(name)
                objects.append(BoxedObject((x1 - 1, y1 - 1, x2, y2), label, difficult == "1", f"'{path}'"))
        except OSError as error:
            raise UserError(f"the annotation '{path}' can't be read ({error.strerror})") from None
        except (ElementTree.ParseError, ValueError) as error:
            raise UserError(f"the annotation '{path}' can't be used ({error}): replace it") from None
        return BoxedImage(image, (width, height) if width and height else None, objects)
