"""Images in class folders: their files, labels and class names."""

from __future__ import annotations

import mimetypes
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import fingerprint

SUFFIXES = (  # torchvision's, and further ones that Pillow reads
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".gif", ".jfif", ".jpe", ".jp2", ".avif", ".tga"),
)
_SIZES = 1 << 16
NAME_FILES = ("LOC_synset_mapping.txt", "words.txt")


class ClassFolders(NamedTuple):
    """The images of one split.

    Attributes:
        classes: names of the class folders, in the order of the labels.
        paths: paths of the image files, class by class.
        labels: one for each path.
    """

    classes: list[str]
    paths: list[str]
    labels: list[int]

    def fingerprint(self) -> str:
        """Identifies the images by their paths below the split, and by the sizes of up to 65,536 files."""
        above = len(os.path.commonpath(self.paths))
        names = [path[above:] for path in self.paths]
        sizes = [Path(path).stat().st_size for path in self.paths[:: len(self.paths) // _SIZES + 1]]
        return fingerprint(self.classes, names, sizes)


def class_folders(folder: Path) -> ClassFolders:
    """The images in class folders, nested or not, in the order of torchvision's ``ImageFolder``.

    Labels number the class folders, sorted as text. Hidden files and folders are ignored.

    Raises:
        UserError: there are no class folders, one of them has no images, or a link points to a folder of this split.
    """
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if _is_folder(entry) and entry.name[0] != ".")
    except OSError as error:
        raise UserError(
            f"'{folder}' can't be read ({error.strerror}): set data.root to the folder above it; ImageNet itself must "
            "be fetched by hand from image-net.org"
        ) from None
    if not classes:
        raise UserError(f"there are no class folders in '{folder}': each class needs a folder of its images")
    seen, others = {os.path.realpath(folder): str(folder)}, Counter[str]()
    found = ClassFolders(classes, [], [])
    for label, name in enumerate(classes):
        paths = _images(str(folder / name), seen, others)
        if not paths:
            raise UserError(f"the class folder '{folder / name}' holds no image: add images or remove the folder")
        found.paths.extend(paths)
        found.labels.extend([label] * len(paths))
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        warnings.warn(f"image files in '{folder}' of other kinds are left out: {kinds}; convert them", stacklevel=2)
    _warn_of_order(classes)
    return found


def check_same_classes(
    train: str | Path, train_classes: Sequence[str], test: str | Path, test_classes: Sequence[str]
) -> None:
    """Checks that both splits have the same class folders.

    Raises:
        UserError: they do not; the line names the folders that only one has.
    """
    for one, classes, other, others in (
        (train, train_classes, test, test_classes),
        (test, test_classes, train, train_classes),
    ):
        if missing := [name for name in classes if name not in set(others)]:
            raise UserError(
                f"'{one}' and '{other}' hold different class folders: {_few(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing in '{other}'; make them the same"
            )


def readable_names(root: Path, classes: Sequence[str]) -> list[str]:
    """Class names from ``LOC_synset_mapping.txt`` or ``words.txt`` in ``root``, or else the folders' names.

    Each line of these files has a folder's name and the names of its class, as in ImageNet and Tiny-ImageNet. If two
    classes have the same name, the folder's name is added.
    """
    named: dict[str, str] = {}
    for name in NAME_FILES:
        if (root / name).is_file():
            lines = (line.split(None, 1) for line in (root / name).read_text("utf-8", "replace").splitlines())
            named = {words[0]: words[1].split(",")[0].strip() for words in lines if len(words) == 2}
            break
    names = [named.get(folder, folder) for folder in classes]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({folder})" for name, folder in zip(names, classes, strict=True)]


def _images(top: str, seen: dict[str, str], others: Counter[str]) -> list[str]:
    """Image files below a folder; ``seen`` maps the real places of all folders so far to their paths."""
    folders, pending = [], [top]
    while pending:
        folder = pending.pop()
        place = os.path.realpath(folder)
        if place in seen:
            raise UserError(
                f"'{folder}' is a link to '{seen[place]}', whose images would be counted twice: remove the link"
            )
        seen[place] = folder
        names = []
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if entry.name[0] != "."]
        for entry in visible:
            if _is_folder(entry):
                pending.append(entry.path)
            elif (suffix := Path(entry.name).suffix.lower()) in SUFFIXES:
                names.append(entry.path)
            elif (mimetypes.types_map.get(suffix) or "").startswith("image/"):
                others[suffix] += 1
        folders.append((folder, sorted(names)))
    return [path for _, names in sorted(folders) for path in names]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _warn_of_order(classes: list[str]) -> None:
    counted = sorted(classes, key=_counted)
    if counted != classes:
        place = {name: label for label, name in enumerate(counted)}
        warnings.warn(
            f"labels follow the names of the class folders as text: {_few(classes)}. Counted, their order is "
            f"{_few(counted)}. A teacher that was trained in the second order needs teacher_classes "
            f"{[place[name] for name in classes]}, or folders renamed with leading zeros",
            stacklevel=3,
        )


def _counted(name: str) -> list[tuple[int, str]]:
    """A sort key that orders numbers by value and ignores the case of letters."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"\d+|\D+", name.casefold())]


def _few(names: list[str], most: int = 15) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
