"""Images in shards of litdata, in a folder or an object store."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from filelock import FileLock

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import fingerprint

_LARGEST = 2**32 - 1  # bytes of a shard, whose offsets have 32 bits


class Sample(NamedTuple):
    """An encoded image with its label, and a name that says where it is from."""

    image: bytes
    label: int
    name: str


class LitdataImages:
    """Images in the order of the shards; an image's index is its place there.

    Samples are dictionaries with ``image``, the content of a file, ``label`` and, if they have one, ``name``. From an
    object store, only the bytes of the image that is asked for are read.

    Args:
        folder: of the shards: a path, or an address such as ``s3://…``.
        classes: names of the classes, in the order of the labels.

    Raises:
        UserError: litdata is missing, or there are no shards.
    """

    def __init__(self, folder: str, classes: Sequence[str]) -> None:
        require_litdata()
        self.folder = folder
        self.classes = classes
        self._opened: tuple[int, Any] | None = None
        try:
            with fsspec.open(f"{folder}/index.json") as file:
                self._index = file.read()
            self._size = sum(int(chunk["chunk_size"]) for chunk in json.loads(self._index)["chunks"])
        except Exception as error:  # of whichever store
            text = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"'{folder}' can't be read as litdata shards ({text}): check data.root") from None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[bytes, int, str]:
        place = f"{self.folder}, image {index}"
        try:
            sample = self._dataset()[index]
            content, label = bytes(sample["image"]), int(sample["label"])
        except Exception as error:
            text = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"'{place}' can't be read ({text}): copy or prepare the shards again") from None
        if not 0 <= label < len(self.classes):
            raise UserError(f"'{place}' has the label {label}, and there are {len(self.classes)} classes")
        return content, label, f"{place}: {sample['name']}" if "name" in sample else place

    def fingerprint(self) -> str:
        """Identifies the images by the index of the shards."""
        return fingerprint(self._index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _dataset(self) -> Any:
        from litdata import StreamingDataset

        if self._opened is None or self._opened[0] != os.getpid():
            with _alone(self.folder):
                self._opened = (os.getpid(), StreamingDataset(self.folder))
        return self._opened[1]


def _alone(folder: str) -> AbstractContextManager[Any]:
    """One process at a time makes litdata's copy of a store's index; others would wait for it for 1.5 s, and fail."""
    if "://" not in folder:
        return nullcontext()
    place = Path.home() / ".lightning"  # litdata's copies are there
    place.mkdir(parents=True, exist_ok=True)
    return FileLock(place / f"{fingerprint(folder)}.lock")


def require_litdata() -> None:
    """Checks that litdata is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("litdata") is None:
        raise UserError("shards need a package: pip install 'lightning-biaskd[shards]'")
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # it would ask the package index


def is_finished(folder: Path) -> bool:
    """Whether the shards were joined by :func:`finish_shards`."""
    return (folder / "index.json").is_file()


def has_shard(folder: Path, number: int) -> bool:
    """Whether a shard was written."""
    return all((folder / name).is_file() for name in _names(number))


def write_shard(folder: Path, number: int, samples: Sequence[Sample]) -> None:
    """Writes one shard, which is then complete or absent.

    Args:
        folder: of the shards.
        number: of the shard, from 0.
        samples: its images.
    """
    from litdata.streaming.writer import BinaryWriter

    draft = folder / f".{number}.part"
    shutil.rmtree(draft, ignore_errors=True)
    writer = BinaryWriter(str(draft), chunk_bytes=_LARGEST, chunk_index=number)
    for place, sample in enumerate(samples):
        writer.add_item(place, sample._asdict())
    writer.done()
    shard, index = _names(number)
    for written, name in ((shard, shard), ("0.index.json", index)):  # the index marks the end
        with (draft / written).open("rb") as file:
            os.fsync(file.fileno())
        (draft / written).replace(folder / name)
    shutil.rmtree(draft)


def finish_shards(folder: Path) -> int:
    """Joins the indices of all shards, and returns the number of their images."""
    from litdata import complete_dataset

    complete_dataset(str(folder))
    return len(LitdataImages(str(folder), ()))


def _names(number: int) -> tuple[str, str]:
    return f"chunk-0-{number}.bin", f"{number}.index.json"
