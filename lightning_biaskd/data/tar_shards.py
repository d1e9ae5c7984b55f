"""Images in the tar files of webdataset."""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path

from lightning_biaskd.data.folders import SUFFIXES
from lightning_biaskd.errors import UserError
from lightning_biaskd.files import fingerprint

_BLOCK = 512  # bytes before a file's content, with its name


class TarImages:
    """Images in tar files, each followed or preceded by its label: ``KEY.jpg`` and ``KEY.cls``.

    The files are read once for the places of the images in them. Images are then read in any order, without unpacking.

    Args:
        folder: of the tar files, whose names give their order.
        classes: names of the classes; ``None`` numbers them, up to the largest label.

    Raises:
        UserError: there are no tar files, one is damaged, or an image has no label.
    """

    def __init__(self, folder: Path, classes: Sequence[str] | None) -> None:
        self.shards = [str(path) for path in sorted(folder.glob("*.tar"))]
        if not self.shards:
            raise UserError(f"there are no .tar files in '{folder}': set data.root to the folder above them")
        self._shards, self._starts, self._sizes, self._labels = array("i"), array("q"), array("q"), array("i")
        for number, shard in enumerate(self.shards):
            self._read(number, shard)
        if not self._labels:
            raise UserError(f"the .tar files in '{folder}' hold no image")
        self.classes: Sequence[str] = classes or [str(label) for label in range(max(self._labels) + 1)]
        if max(self._labels) >= len(self.classes) or min(self._labels) < 0:
            raise UserError(
                f"labels in '{folder}' lie in [{min(self._labels)}, {max(self._labels)}], and there are "
                f"{len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[bytes, int, str]:
        shard = self.shards[self._shards[index]]
        with open(shard, "rb") as file:  # noqa: PTH123  (a path object for each image takes longer)
            file.seek(self._starts[index] - _BLOCK)
            name = file.read(_BLOCK)[:100].rstrip(b"\0").decode("utf-8", "replace")
            return file.read(self._sizes[index]), self._labels[index], f"{shard}/{name}"

    def fingerprint(self) -> str:
        """Identifies the images by the names of the shards, and by their places and labels."""
        names = [Path(shard).name for shard in self.shards]
        return fingerprint(names, self._starts, self._sizes, self._labels)

    def _read(self, number: int, shard: str) -> None:
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        try:
            with tarfile.open(shard, "r:") as file:
                for member in file:
                    folder, _, base = member.name.rpartition("/")
                    stem, _, kind = base.partition(".")
                    key = f"{folder}/{stem}"
                    if not member.isfile() or not stem:
                        continue
                    if kind == "cls":
                        content = file.extractfile(member)
                        labels[key] = int(content.read() if content else b"")
                    elif f".{kind.lower()}" in SUFFIXES:
                        images[key] = (member.offset_data, member.size)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise UserError(f"the shard '{shard}' can't be read ({error}): replace it") from None
        if bare := [key for key in images if key not in labels]:
            raise UserError(f"'{bare[0].lstrip('/')}' in '{shard}' has no label: each image needs a .cls file")
        for key, (start, size) in images.items():
            self._shards.append(number)
            self._starts.append(start)
            self._sizes.append(size)
            self._labels.append(labels[key])
