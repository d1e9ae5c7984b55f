"""Digests, and files that are written completely or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_CHUNK = 1 << 20


def fingerprint(*parts: Any) -> str:
    """Sixteen hexadecimal digits of what tensors hold, whatever their layout, and of the ``repr`` of the rest.

    Example:
        >>> fingerprint("a", torch.ones(2, 2)) == fingerprint("a", torch.ones(2, 2).T)
        True
        >>> fingerprint("a", torch.ones(2, 2)) == fingerprint("a", torch.ones(4))
        False
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype} {tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            sha.update(repr(part).encode())
    return sha.hexdigest()[:16]


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove_stale_drafts(path: Path) -> None:
    """Removes drafts of ``path`` that killed processes have left; one that is being written stays."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        try:
            with draft.open("rb") as file:
                _claim(file)
            draft.unlink()
        except OSError:
            pass  # it is being written, or somebody else has removed it


def _claim(file: IO[Any]) -> None:
    """Locks a file until it is closed or its process ends.

    Raises:
        OSError: another process holds it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a draft next to ``path`` and renames it into place at the end, so readers see a complete file or none.

    If the body raises, ``path`` stays as it was and the draft is removed. The data are on disk before the rename.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp(), "note.txt")
        >>> with atomic_write(place, "w") as file:
        ...     _ = file.write("all of it")
        >>> place.read_text()
        'all of it'
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with draft.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            _claim(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
