"""The folder of a cache: whose outputs it holds, and its space on the disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import atomic_write
from lightning_biaskd.teachers.rows import CHECKSUMS, DATA, damaged, locked

HEADER = "header.json"


def prepare(folder: Path, header: dict[str, Any], sizes: dict[str, int]) -> None:
    """Makes the folder, or verifies that it was made for the same header and is whole.

    The header is written last, so a folder that was left half made has none, and no rows either: it is made again.

    Args:
        folder: of the cache.
        header: what the rows belong to.
        sizes: bytes of each file, exactly.

    Raises:
        UserError: it belongs to something else or is damaged, or its disk has no room.
        OSError: the folder can't be made or read.
    """
    if not (folder / HEADER).exists():
        _make(folder, header, sizes)
    _verify_header(folder, header)
    for name, size in sizes.items():
        try:
            found = (folder / name).stat().st_size
        except FileNotFoundError:
            raise damaged(folder) from None
        if found != size:
            raise damaged(folder)


def _verify_header(folder: Path, header: dict[str, Any]) -> None:
    place = folder / HEADER
    try:
        found = dict(json.loads(place.read_text("utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"'{place}' is damaged: delete its folder and fill it again, or name another") from None
    if found.get("version") != header["version"]:
        raise UserError(
            f"the teacher's cache in '{folder}' was written by another version of this library, in another format: "
            "delete the folder and fill it again, or name another"
        )
    other = [name for name, value in header.items() if found.get(name) != value]
    if other:
        raise UserError(
            f"the teacher's cache in '{folder}' was made of another "
            + ", ".join(f"{name} ({found.get(name)}, not {header[name]})" for name in other)
            + ": name another folder, or delete it"
        )


def _make(folder: Path, header: dict[str, Any], sizes: dict[str, int]) -> None:
    size = sum(sizes.values())
    existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise _no_room(size, f"'{existing}' has {free / 1e6:,.0f} MB free")
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"'{folder}' is a link to a folder that is not there: make that folder, or name another")
    folder.mkdir(parents=True, exist_ok=True)
    # this file is also the lock
    lock = os.open(folder / CHECKSUMS, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with locked(lock):
            if (folder / HEADER).exists():  # another process was first
                return
            _refuse_rows_of_others(folder)
            rank_zero_info(f"the teacher's outputs take {size / 1e6:,.0f} MB in '{folder}'")
            try:
                for name in sorted(sizes, key=lambda name: name != CHECKSUMS):
                    _reserve(folder / name, sizes[name])
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                for name in sizes:
                    with suppress(FileNotFoundError):
                        os.truncate(folder / name, 0)
                raise _no_room(size, str(error.strerror)) from None
            with atomic_write(folder / HEADER, "w") as file:
                json.dump(header, file, indent=1)
    finally:
        os.close(lock)


def _refuse_rows_of_others(folder: Path) -> None:
    """Without a header nobody knows whose rows they are."""
    data, checksums = folder / DATA, folder / CHECKSUMS
    if (data.exists() and data.stat().st_size and not checksums.stat().st_size) or checksums.read_bytes().strip(b"\0"):
        raise UserError(
            f"'{folder}' holds outputs of a teacher but no {HEADER} that says of which: delete the folder and fill it "
            "again, or name another"
        )


def _reserve(path: Path, size: int) -> None:
    """Makes a file of zeros whose space on the disk is taken, so that writing to it later can't fail for want of it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.truncate(file, 0)
        try:
            os.posix_fallocate(file, 0, size)
        except (AttributeError, OSError) as error:  # macOS has none, and some disks can't
            if getattr(error, "errno", errno.ENOTSUP) not in (errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                raise
            os.truncate(file, size)
    finally:
        os.close(file)


def _no_room(size: int, reason: str) -> UserError:
    return UserError(
        f"the teacher's cache needs {size / 1e6:,.0f} MB and {reason}: choose another folder, fewer views, or topk"
    )
