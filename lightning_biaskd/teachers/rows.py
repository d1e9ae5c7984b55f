"""Rows of bytes in a file that several processes fill and read, each with a checksum."""

from __future__ import annotations

import errno
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from lightning_biaskd.errors import UserError

DATA, CHECKSUMS = "logits.bin", "filled.bin"
CHECKSUM_BYTES = 4

_BLOCK = 1 << 22  # bytes that are read at once
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_ODD = 0x9E3779B97F4A7C15


class Rows:
    """An array of rows of bytes on the disk, each empty or whole.

    Every row has a checksum of 32 bits, of its bytes, its place and ``seed``; 0 stands for an empty row. It is written
    after the row and verified whenever the row is read. A row that is there is never written again, so that all
    processes read what the first of them wrote. Files are read and written by system calls and not mapped, so that a
    file that is cut, or a full disk, raises an error and no signal.

    Args:
        folder: holds both files at their full size.
        width: bytes of a row, an even number.
        count: of rows.
        seed: of the checksums: what the rows belong to.

    Attributes:
        writable: whether rows can be added.
    """

    def __init__(self, folder: Path, width: int, count: int, seed: int) -> None:
        self.folder = folder
        self.width = width
        self.count = count
        self._data, self.writable = _opened(folder / DATA)
        self._checksums, writable = _opened(folder / CHECKSUMS)
        self.writable &= writable
        weakref.finalize(self, os.close, self._data)
        weakref.finalize(self, os.close, self._checksums)
        powers = np.cumprod(np.full(width // 2 + 1, _ODD, np.uint64), dtype=np.uint64)
        self._weights, self._place = powers[1:], powers[0]
        self._seed = np.uint64(seed % 2**64)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rows:
        return self  # copies share the open files

    def __reduce__(self) -> Any:
        raise TypeError("an opened cache stays in its process: pickle its settings, TeacherCache")

    def filled(self) -> Tensor:
        """Which rows are there, (count,) bool."""
        found = np.frombuffer(self._read(self._checksums, 0, self.count, CHECKSUM_BYTES), np.uint32)
        return torch.from_numpy(found != 0)

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Reads the rows of those numbers (B,).

        Returns:
            Their bytes (B, width), and which of them are there (B,).
        """
        numbers = slots.tolist()
        # checksums first: a row is written before its checksum
        found = b"".join(self._read(self._checksums, number, 1, CHECKSUM_BYTES) for number in numbers)
        data = b"".join(self._read(self._data, number, 1, self.width) for number in numbers)
        rows, checksums = self._as_rows(data), np.frombuffer(found, np.uint32)
        self._verify(rows, checksums, slots.numpy())
        return torch.from_numpy(rows), torch.from_numpy(checksums != 0)

    def read_all(self) -> Iterator[tuple[int, Tensor]]:
        """Reads and verifies all rows, block by block, each with the number of its first row."""
        step = max(_BLOCK // self.width, 1)
        for start in range(0, self.count, step):
            count = min(step, self.count - start)
            checksums = np.frombuffer(self._read(self._checksums, start, count, CHECKSUM_BYTES), np.uint32)
            rows = self._as_rows(self._read(self._data, start, count, self.width))
            self._verify(rows, checksums, np.arange(start, start + count))
            yield start, torch.from_numpy(rows)

    def add(self, slots: Tensor, rows: Tensor) -> Tensor:
        """Stores rows (B, width) in those places (B,) that are empty.

        Returns:
            What the places hold now, (B, width): of a place that another process filled first, its row. Where a row
            can't be written, as on a full disk, a warning says so once, and the rows given are returned.
        """
        with self._locked():
            stored, there = self.read(slots)
            if self.writable and not bool(there.all()):
                try:
                    self._write(slots[~there].numpy(), rows[~there].numpy())
                    stored, there = self.read(slots)
                except OSError as error:
                    self.writable = False
                    rank_zero_warn(
                        f"the teacher's cache in '{self.folder}' can't be written ({error.strerror}): training goes "
                        "on, but further outputs are not stored; make room before the next run"
                    )
        return torch.where(there.unsqueeze(1), stored, rows)

    def _write(self, slots: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        slots, first = np.unique(slots, return_index=True)
        rows = rows[first]
        checksums = self._checksum(slots, rows)
        for file, parts in ((self._data, rows), (self._checksums, checksums)):
            for slot, part in zip(slots.tolist(), parts, strict=True):
                content = part.tobytes()
                if os.pwrite(file, content, slot * len(content)) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _read(self, file: int, start: int, count: int, width: int) -> bytes:
        wanted = count * width
        try:
            found = os.pread(file, wanted, start * width)
            while 0 < len(found) < wanted and (more := os.pread(file, wanted - len(found), start * width + len(found))):
                found += more
        except OSError as error:
            raise UserError(f"the teacher's cache in '{self.folder}' can't be read ({error.strerror})") from error
        if len(found) < wanted:
            raise damaged(self.folder)
        return found

    def _as_rows(self, data: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(bytearray(data), np.uint8).reshape(-1, self.width)

    def _verify(self, rows: NDArray[np.uint8], checksums: NDArray[np.uint32], slots: NDArray[np.int64]) -> None:
        expected = self._checksum(slots, rows)
        if bool(((checksums != expected) & (checksums != 0)).any()):
            raise damaged(self.folder)

    def _checksum(self, slots: NDArray[np.int64], rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
        total = rows.view(np.uint16).astype(np.uint64) @ self._weights
        total += (slots.astype(np.uint64) + self._seed) * self._place
        total ^= total >> np.uint64(29)  # so that the seed reaches all bits
        total *= np.uint64(_ODD)
        return (total >> np.uint64(32)).astype(np.uint32) | np.uint32(1)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._checksums) if self.writable else nullcontext():
            yield


def damaged(folder: Path) -> UserError:
    """The error of a folder whose rows aren't what was written."""
    return UserError(
        f"the teacher's cache in '{folder}' is damaged: delete the folder and fill it again, or name another"
    )


@contextmanager
def locked(file: int) -> Iterator[None]:
    """Keeps other processes out until the end; without effect on disks that have no locks."""
    if sys.platform == "win32":
        raise UserError("a cache of the teacher needs file locks of Linux or macOS: train without one")
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _opened(path: Path) -> tuple[int, bool]:
    """A file descriptor, and whether it can be written to."""
    try:
        return os.open(path, os.O_RDWR), True
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY), False
