"""The header of images that ``biaskd prepare`` has stored: what they are, and whether all of them are there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import fsspec

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import atomic_write

HEADER = "prepared.json"
Format = Literal["folders", "litdata", "webdataset"]


@dataclass
class Header:
    """What a folder of prepared images holds.

    Attributes:
        source: folder of the images they were made from.
        format: of the stored images.
        short_side: of images that were larger, in pixels.
        quality: of the JPEG files.
        classes: names of the classes, in the order of the labels.
        found: images of each split in ``source``.
        images: images of each split that are stored; empty until all of them are.
        left_out: damaged images of each split, with what is wrong with them.
    """

    source: str
    format: Format
    short_side: int
    quality: int
    classes: list[str]
    found: dict[str, int]
    images: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes the header into a folder."""
        with atomic_write(folder / HEADER, "w") as file:
            json.dump(asdict(self), file, indent=1)

    def check(self, root: str, format: Format) -> None:
        """Checks that all images are stored, in this format.

        Raises:
            UserError: they are not.
        """
        if self.format != format:
            raise UserError(f"'{root}' holds images in another format: set data.format to {self.format}")
        if not self.images:
            raise UserError(f"'{root}' isn't complete: run the same `biaskd prepare` again, which goes on where it was")


def header_of(root: str) -> Header | None:
    """The header in a folder or an object store; ``None`` if it has none.

    Raises:
        UserError: it cannot be read.
    """
    path = f"{root}/{HEADER}"
    try:
        with fsspec.open(path, "r", encoding="utf-8") as file:
            return Header(**json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise UserError(f"'{path}' can't be read ({str(error).splitlines()[0]}): prepare the images again") from None
