"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.weights import locate, read


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it, so that a kill or a full disk leaves the old one.

    Where the disk is full, training goes on with a warning, and what the checkpoint was to replace stays, even if it
    has another name. A checkpoint that is damaged or isn't there is refused in one line that names the newest whole one
    beside it. Nothing but tensors and plain values is ever unpickled, whatever ``weights_only`` says, and a remote file
    is read only where its address ends in its digest, see :func:`~lightning_biaskd.load_weights`.

    The modules of this package put it in place of Lightning's default, whatever Trainer runs them.
    """

    _failed = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # a remote folder, which fsspec writes to
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(place)
            self._failed = False
        except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where the disk is full
            self._failed = True
            draft.unlink(missing_ok=True)
            others = newest(place.parent.glob("*.ckpt"))
            kept = f"{others.name} is still there" if others else "there is none yet"
            rank_zero_warn(
                f"no checkpoint could be written to '{place}' ({str(error).splitlines()[0]}): make room; {kept}, and "
                "training goes on"
            )

    def remove_checkpoint(self, path: str | Path) -> None:
        if not self._failed:  # what was to replace it isn't there
            super().remove_checkpoint(path)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if "://" in str(path):
            return cast("dict[str, Any]", read(locate(str(path))))
        place = Path(path)
        if not is_whole(place):
            others = newest(place.parent.glob("*.ckpt"))
            remedy = f"go on from '{others}'" if others else "there is no other beside it"
            fault = "is damaged, probably cut off while it was written" if place.is_file() else "is not there"
            fault = "is a folder" if place.is_dir() else fault
            raise UserError(f"the checkpoint '{path}' {fault}: {remedy}")
        return cast("dict[str, Any]", read(place))


def is_whole(path: Path) -> bool:
    """Whether a file that ``torch.save`` wrote has its end; its parts are verified by their checksums."""
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def newest(paths: Iterable[Path]) -> Path | None:
    """The whole checkpoint that was written last, ``None`` for none."""
    by_age = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in by_age if is_whole(path)), None)
