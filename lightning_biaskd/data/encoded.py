"""Encoded images of one split: class folders, or shards that hold many images in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lightning_biaskd.data.folders import ClassFolders, class_folders
from lightning_biaskd.data.litdata_shards import LitdataImages
from lightning_biaskd.data.prepared import Format, header_of
from lightning_biaskd.data.tar_shards import TarImages
from lightning_biaskd.errors import UserError


class EncodedImages(Protocol):
    """Image files with labels, each with an index from 0.

    Attributes:
        classes: names of the classes, in the order of the labels.
    """

    classes: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int, str]:
        """The content of the file, its label, and a name for errors."""

    def fingerprint(self) -> str:
        """Identifies the images, wherever their files are."""


class FolderImages:
    """Image files in class folders."""

    def __init__(self, folder: Path) -> None:
        self.found: ClassFolders = class_folders(folder)
        self.classes: Sequence[str] = self.found.classes

    def __len__(self) -> int:
        return len(self.found.paths)

    def __getitem__(self, index: int) -> tuple[bytes, int, str]:
        path = self.found.paths[index]
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"the image '{path}' can't be read ({error.strerror}): restore or remove it") from None
        return content, self.found.labels[index], path

    def fingerprint(self) -> str:
        """Identifies the images by their paths below the split, and by the sizes of up to 65,536 files."""
        return self.found.fingerprint()


def opened(root: str, split: str, format: Format) -> EncodedImages:
    """The images of a split.

    Args:
        root: folder with the folder ``split``, or the address of one in an object store, for litdata.
        split: ``"train"`` or ``"val"``.
        format: of the images.

    Raises:
        UserError: there are none, they are not completely prepared, or the format or its package is missing.
    """
    if format not in ("folders", "litdata", "webdataset"):
        raise UserError(f"format={format!r}: choose folders, litdata or webdataset")
    if "://" in root and format != "litdata":
        raise UserError(f"'{root}' is no local folder: copy it, or store the images as litdata shards there")
    header = header_of(root)
    if header is not None:
        header.check(root, format)
    if format == "folders":
        return FolderImages(Path(root, split))
    classes = header.classes if header is not None else _listed(root)
    if format == "webdataset":
        return TarImages(Path(root, split), classes)
    if classes is None:
        raise UserError(
            f"'{root}' has neither a prepared.json nor a classes.txt: write one name in a line of the latter"
        )
    return LitdataImages(f"{root}/{split}", classes)


def _listed(root: str) -> list[str] | None:
    path = Path(root, "classes.txt")
    return path.read_text("utf-8").splitlines() if path.is_file() else None
