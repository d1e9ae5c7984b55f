"""Storing images once in the size that training needs, so that every epoch decodes less."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from rich.progress import Progress
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from lightning_biaskd.data.decoding import decode
from lightning_biaskd.data.encoded import FolderImages
from lightning_biaskd.data.folders import NAME_FILES, check_same_classes
from lightning_biaskd.data.litdata_shards import (
    Sample,
    finish_shards,
    has_shard,
    is_finished,
    require_litdata,
    write_shard,
)
from lightning_biaskd.data.loader import ImageLoader
from lightning_biaskd.data.prepared import Header, header_of
from lightning_biaskd.errors import UserError
from lightning_biaskd.files import atomic_write

_SPLITS = ("train", "val")
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")


def prepare(
    source: str,
    output: str,
    format: Literal["folders", "litdata"] = "folders",
    short_side: int = 256,
    quality: int = 90,
    num_workers: int = 8,
    damaged: Literal["error", "leave_out"] = "error",
    shard_size: int = 2048,
) -> Header:
    """Stores class folders of images as smaller JPEG files, in folders again or in litdata shards.

    Images with a shorter side above ``short_side`` are scaled to it, as evaluation does, and stored as JPEG files.
    Smaller ones are copied unchanged. An interrupted command goes on where it was. ``prepared.json`` in ``output``
    says what is there; until it counts the images, :class:`ImageNetDataModule` refuses the folder.

    Args:
        source: Folder with train and val, each with a folder per class.
        output: Folder for the prepared images.
        format: Class folders again, or litdata shards, in which the training images are shuffled once.
        short_side: The longest shorter side of a stored image, in pixels.
        quality: Of JPEG files, from 1 to 95.
        num_workers: Processes that decode and encode.
        damaged: Stop at an image that can't be decoded, or leave it out and list it in prepared.json.
        shard_size: Images in a shard.

    Returns:
        What ``prepared.json`` holds.

    Raises:
        UserError: the folders are missing or differ, an image is damaged, ``output`` holds something else, or litdata
            is missing.
    """
    if short_side < 1 or not 1 <= quality <= 95 or shard_size < 1:
        raise UserError(
            f"short_side={short_side}, quality={quality} and shard_size={shard_size}: give pixels above 0, a quality "
            "from 1 to 95, and images above 0"
        )
    if format not in ("folders", "litdata") or damaged not in ("error", "leave_out"):
        raise UserError(f"format={format!r} and damaged={damaged!r}: choose folders or litdata, and error or leave_out")
    if format == "litdata":
        require_litdata()
    root, target = Path(source).expanduser().resolve(), Path(output).expanduser().resolve()
    if "://" in output or target == root or root in target.parents:
        raise UserError(f"output={output}: choose a local folder outside '{source}'; copy it to a store afterwards")
    splits = {name: FolderImages(root / name) for name in _SPLITS}
    check_same_classes(root / "train", splits["train"].classes, root / "val", splits["val"].classes)
    found = {name: len(images) for name, images in splits.items()}
    header = _begun(target, Header(str(root), format, short_side, quality, list(splits["train"].classes), found))
    for name in NAME_FILES:
        if (root / name).is_file():
            shutil.copyfile(root / name, target / name)
    images = {}
    for name, split in splits.items():
        job = _Smaller(split, root / name, target / name, short_side, quality, format == "folders")
        lost = header.left_out.setdefault(name, [])
        results = (
            _write_folders(job, num_workers) if format == "folders" else _write_shards(job, num_workers, shard_size)
        )
        with Progress() as progress:
            task = progress.add_task(name, total=len(split))
            for result in results:
                progress.advance(task, 1)
                if isinstance(result, _Damaged) and result.reason not in lost:
                    if damaged == "error":
                        raise UserError(f"{result.reason}; or leave it out: --damaged leave_out")
                    lost.append(result.reason)
                    header.write(target)
        images[name] = _stored(target / name, header)
        if images[name] != len(split) - len(lost):
            raise UserError(
                f"'{target / name}' holds {images[name]} images in place of {len(split) - len(lost)}: remove it and "
                "prepare again"
            )
    header.images = images
    header.write(target)
    return header


def _begun(target: Path, header: Header) -> Header:
    """The header of ``target``, which is empty or was begun with the same settings."""
    earlier = header_of(str(target))
    if earlier is None:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"'{target}' isn't empty and holds no prepared images: choose another output")
        target.mkdir(parents=True, exist_ok=True)
        header.write(target)
        return header
    settings = ("source", "format", "short_side", "quality", "classes", "found")
    changed = [name for name in settings if getattr(earlier, name) != getattr(header, name)]
    if changed:
        raise UserError(f"'{target}' was begun with another {changed[0]}: choose another output, or the same settings")
    for draft in target.glob("*/*/.*.part"):
        draft.unlink()
    return earlier


class _Damaged(NamedTuple):
    reason: str


class _Smaller(Dataset[Any]):
    """Encoded images in their new size. For folders, they are written by whichever process made them."""

    def __init__(
        self, images: FolderImages, source: Path, target: Path, short_side: int, quality: int, write: bool
    ) -> None:
        self.images = images
        self.source = source
        self.target = target
        self.short_side = short_side
        self.quality = quality
        self.write = write

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample | _Damaged | None:
        path = Path(self.images.found.paths[index])
        name = path.relative_to(self.source)
        places = (
            [self.target / name] if name.suffix.lower() in _JPEG else [self.target / name, self.target / f"{name}.jpg"]
        )
        if self.write and any(place.is_file() for place in places):
            return None
        try:
            content, label, _ = self.images[index]
            smaller = self._smaller(content, str(path))
        except UserError as error:
            return _Damaged(str(error))
        if not self.write:
            return Sample(smaller, label, name.as_posix())
        place = places[0] if smaller is content else places[-1]
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as file:
            file.write(smaller)
        return None

    def _smaller(self, content: bytes, name: str) -> bytes:
        image = decode(content, name, "pillow")
        assert isinstance(image, Image.Image)
        if min(image.size) <= self.short_side:
            return content
        file = BytesIO()
        functional.resize(image, [self.short_side], antialias=True).save(file, "JPEG", quality=self.quality)
        return file.getvalue()


def _done(job: _Smaller, order: Sequence[int], num_workers: int) -> Iterator[Sample | _Damaged | None]:
    """The results of a job, in the given order."""
    loader = ImageLoader(job, batch_size=16, sampler=order, num_workers=num_workers, collate_fn=list)
    for results in loader:
        yield from results


def _write_folders(job: _Smaller, num_workers: int) -> Iterator[_Damaged | None]:
    """Writes files; yields for each image what is wrong with it."""
    for result in _done(job, range(len(job)), num_workers):
        yield result if isinstance(result, _Damaged) else None


def _write_shards(job: _Smaller, num_workers: int, shard_size: int) -> Iterator[_Damaged | None]:
    """Writes shards; yields for each image what is wrong with it, before its shard is written."""
    job.target.mkdir(exist_ok=True)
    order = list(range(len(job)))
    if job.target.name == "train":  # a reader of whole shards must see all classes at a time
        order = torch.randperm(len(job), generator=torch.Generator().manual_seed(0)).tolist()
    shards = [order[start : start + shard_size] for start in range(0, len(order), shard_size)]
    todo = [] if is_finished(job.target) else [n for n in range(len(shards)) if not has_shard(job.target, n)]
    yield from (None for number, shard in enumerate(shards) if number not in set(todo) for _ in shard)
    results = _done(job, [index for number in todo for index in shards[number]], num_workers)
    for number in todo:
        samples = []
        for result in islice(results, len(shards[number])):
            if isinstance(result, Sample):
                samples.append(result)
            yield result if isinstance(result, _Damaged) else None
        if samples:
            write_shard(job.target, number, samples)


def _stored(folder: Path, header: Header) -> int:
    """The number of images that a split holds."""
    if header.format == "litdata":
        return finish_shards(folder)
    images = FolderImages(folder)
    check_same_classes(header.source, header.classes, folder, images.classes)
    return len(images)
