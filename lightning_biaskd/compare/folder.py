"""The folder of a run: its result, and the lock of the process that is at work in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import atomic_write

try:
    import fcntl
except ImportError:  # Windows; there nothing keeps two processes from the same run
    fcntl = None  # type: ignore[assignment]

RESULT = "result.json"
_NUMBER = int | float
_CONTENT: dict[str, Any] = {
    **{"last": dict, "validation": dict, "versions": dict, "epochs": int, "seconds": _NUMBER, "resumed": bool},
    **{"device": str, "fingerprint": str, "command": str, "wrong_rate": _NUMBER | None},
    "teacher_validation": _NUMBER | None,
}


def score(result: dict[str, Any]) -> str:
    """The name of the score by which runs are compared: mean IoU of maps, and otherwise top-1 accuracy."""
    return str(result.get("score", "acc1"))


class BusyError(Exception):
    """Another process is at work in a folder."""


def result_in(folder: Path) -> dict[str, Any] | None:
    """The result of the run in a folder, ``None`` if it is not done.

    A damaged file counts as none, so that the run is repeated; one line says so.
    """
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if problem := _problem(found):
            raise ValueError(problem)
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        print(f"{folder / RESULT} is damaged ({' '.join(str(error).split())}): the run is repeated", file=sys.stderr)
        return None
    return dict(found)


def _problem(found: Any) -> str | None:
    if not isinstance(found, dict):
        return "it holds no results"
    for name, kind in _CONTENT.items():
        if name not in found or not isinstance(found[name], kind):
            return f"{name!r} is missing or wrong"
    scores = [found["last"].get(score(found)), *found["validation"].values()]
    if not all(isinstance(value, _NUMBER) for value in scores) or not all(map(str.isdigit, found["validation"])):
        return "an accuracy is missing or wrong"
    return None


def write_result(folder: Path, content: dict[str, Any]) -> None:
    """Writes the result; readers find all of it or nothing."""
    with atomic_write(folder / RESULT, "w") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder; the system releases the lock when this process ends, however it does.

    Raises:
        BusyError: another process is there.
        UserError: the file system has no locks.
    """
    if fcntl is None:
        yield
        return
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another process is at work in {folder}") from None
        except OSError as error:
            raise UserError(
                f"files in {folder} can't be locked ({error.strerror}), so two processes could do the same run: choose "
                "an --output on a file system with locks, for example by the mount option flock"
            ) from error
        yield


def is_taken(folder: Path) -> bool:
    """Whether a process is at work in a folder now."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with alone_in(folder):
            return False
    except BusyError:
        return True
