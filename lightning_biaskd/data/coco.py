"""Object detection on COCO, or any data set whose annotations are in its JSON format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning_biaskd.data.detection import BoxedImage, BoxedObject, DetectionDataModule
from lightning_biaskd.errors import UserError


class COCODetectionDataModule(DetectionDataModule):
    """Object detection on COCO (Lin et al., 2014, arXiv 1405.0312), or any data set in its JSON format.

    COCO's test annotations are not public, so ``configs/data/coco.yaml`` tests on the validation images. Crowds are
    left out of training and ignored in an evaluation.

    Args:
        root: folder of the data.
        *args: as of :class:`DetectionDataModule`.
        annotations: the JSON file of a part below ``root``.
        images: the folder of a part's images below ``root``.
        numbering: ``"order"`` numbers the categories from 1 in the order of their ids. ``"ids"`` takes the ids
            themselves, as torchvision's networks for COCO do, whose ``num_classes`` is 91.
        **kwargs: as of :class:`DetectionDataModule`.

    Raises:
        UserError: a file that is missing or no COCO annotation, parts with different categories, or as the base class.
    """

    def __init__(
        self,
        root: str = "data/coco",
        *args: Any,
        annotations: str = "annotations/instances_{part}2017.json",
        images: str = "{part}2017",
        numbering: Literal["order", "ids"] = "order",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, *args, **kwargs)
        if numbering not in ("order", "ids"):
            raise UserError(f"unknown numbering {numbering!r}: choose order or ids")
        self.annotations = annotations
        self.images = images
        self.numbering = numbering
        self._first: tuple[Path, dict[int, str]] | None = None

    def read(self, part: str) -> Sequence[BoxedImage]:
        path = Path(self.root) / self.annotations.format(part=part)
        folder = Path(self.root) / self.images.format(part=part)
        try:
            content = json.loads(path.read_text("utf-8"))
            names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
            labels = self._labels(path, names)
            found = {
                image["id"]: BoxedImage(folder / image["file_name"], (image["width"], image["height"]), [])
                for image in content["images"]
            }
            for annotation in content["annotations"]:
                item = found[annotation["image_id"]]
                x, y, width, height = map(float, annotation["bbox"])
                label, crowd = labels[annotation["category_id"]], bool(annotation.get("iscrowd", 0))
                place = f"annotation {annotation.get('id')} in '{path}', of '{item.path.name}',"
                item.objects.append(BoxedObject((x, y, x + width, y + height), label, crowd, place))
        except OSError as error:
            raise UserError(f"'{path}' can't be read ({error.strerror}): set data.root and data.annotations") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"'{path}' is no COCO annotation of boxes ({type(error).__name__}: {error}): it needs images, "
                "categories, and annotations with image_id, category_id and bbox"
            ) from None
        if missing := next((item.path for item in found.values() if not item.path.is_file()), None):
            raise UserError(f"the image '{missing}' is missing, and '{path}' lists it: set data.root and data.images")
        return list(found.values())

    def _labels(self, path: Path, names: dict[int, str]) -> dict[int, int]:
        """The label of each category id."""
        first, known = self._first = self._first or (path, names)
        if names != known:
            raise UserError(f"'{first}' and '{path}' have different categories: give both the same, with the same ids")
        if self.numbering == "ids":
            if min(names) < 1:
                raise UserError(f"'{path}' has a category with id {min(names)}: choose numbering order")
            self.set_classes([names.get(number, f"unused {number}") for number in range(1, max(names) + 1)])
            return {number: number for number in names}
        self.set_classes([names[number] for number in sorted(names)])
        return {number: label for label, number in enumerate(sorted(names), start=1)}
