"""Checkpoints that are whole or not there."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import atomic_write, remove_stale_drafts
from lightning_biaskd.networks.weights import locate, read
from lightning_biaskd.training.plain_values import plain

_OF_SPAWNED_PROCESSES = ".temp.ckpt"
"""The file in which processes that Lightning spawned or forked hand their weights back."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and then renames it, so that a kill or a full disk leaves the old one.

    Where the disk is full, training goes on with a warning, and the checkpoint that was to be replaced stays, even if
    it has another name. A damaged or missing checkpoint is refused in one line that names another whole one. Only
    tensors and plain values are unpickled, whatever ``weights_only`` says, and a remote file is read only where its
    address ends in its digest, see :func:`~lightning_biaskd.load_weights`. Remote folders can be written to.

    What is no tensor and no plain value is converted or left out, see
    :func:`~lightning_biaskd.training.plain_values.plain`.

    The modules of this package put it in place of Lightning's default, in any Trainer.

    Attributes:
        failed: whether the last checkpoint could not be written.
    """

    failed = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.failed = False
        checkpoint = plain(checkpoint)
        if "://" in str(path):  # a remote folder, which fsspec writes to
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            remove_stale_drafts(place)
            with atomic_write(place) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where the disk is full
            self.failed = True
            other = newest(place.parent.glob("*.ckpt"))
            kept = f"{other.name} is still there" if other else "there is none yet"
            rank_zero_warn(
                f"no checkpoint could be written to '{place}' ({str(error).splitlines()[0]}): make room; {kept}, and "
                "training goes on"
            )

    def remove_checkpoint(self, path: str | Path) -> None:
        if not self.failed:  # or what was to replace it isn't there
            super().remove_checkpoint(path)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        place = locate(str(path)) if "://" in str(path) else Path(path)
        if not is_intact(place):
            other = newest(place.parent.glob("*.ckpt"))
            remedy = f"go on from '{other}'" if other else "there is no other in its folder"
            fault = "is damaged, probably cut off while it was written" if place.is_file() else "is not there"
            fault = "is a folder" if place.is_dir() else fault
            raise UserError(f"the checkpoint '{path}' {fault}: {remedy}")
        content = read(place)
        if not is_checkpoint(content) and place.name != _OF_SPAWNED_PROCESSES:
            raise UserError(
                f"'{path}' holds weights and is no checkpoint of a run: give it as the network's weights "
                "(--model.weights, --model.student_weights or load_weights)"
            )
        return content  # type: ignore[no-any-return]


def make_durable(strategy: Strategy) -> None:
    """Puts :class:`DurableCheckpointIO` in place of Lightning's default, also inside ``AsyncCheckpointIO``.

    A strategy that reads files itself then reads plain values only.
    """
    plugin: Any = strategy.checkpoint_io
    if type(plugin) is TorchCheckpointIO:
        strategy.checkpoint_io = DurableCheckpointIO()
    while (inner := getattr(plugin, "_checkpoint_io", None)) is not None:
        if type(inner) is TorchCheckpointIO:
            plugin._checkpoint_io = DurableCheckpointIO()
        plugin = inner
    if type(strategy).load_checkpoint is not Strategy.load_checkpoint:  # it reads files without any plugin
        strategy.load_checkpoint = partial(_load_plain_values, strategy)  # type: ignore[method-assign]


def _load_plain_values(strategy: Strategy, path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
    return type(strategy).load_checkpoint(strategy, path, weights_only=True)


def is_checkpoint(content: Any) -> bool:
    """Whether a Trainer wrote it."""
    return isinstance(content, dict) and {"state_dict", "pytorch-lightning_version", "global_step"} <= content.keys()


def is_intact(path: Path) -> bool:
    """Whether a file can be read to its end, with the checksums of its parts where it has some.

    A file that is whole but holds code is no damaged one; it is refused when it is read.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if parts.testzip() is not None:
                    return False
        read(path)
    except UserError as error:
        return "holds pickled code" in str(error) and zipfile.is_zipfile(path)
    except Exception:  # damage can raise anything, in zipfile as in torch
        return False
    return True


def newest(paths: Iterable[Path], resumable: bool = False) -> Path | None:
    """The whole checkpoint that is furthest in training, ``None`` for none. Damaged ones are passed over with a line.

    Args:
        paths: candidates.
        resumable: pass over those that hold weights alone.

    Raises:
        UserError: a resumable one holds code, so that no run can go on from it.
    """
    found = [(progress, path) for path in paths if (progress := _progress(path, resumable)) is not None]
    for _, path in sorted(found, reverse=True):
        if is_intact(path):
            return path
        _pass_over(path)
    return None


def _progress(path: Path, resumable: bool) -> tuple[int, int, float] | None:
    """Step, epoch and time of a checkpoint, without reading its tensors."""
    try:
        if zipfile.is_zipfile(path):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            content = read(path)
        step, epoch = int(content.get("global_step", -1)), int(content.get("epoch", -1))
        written = path.stat().st_mtime
    except Exception:  # see is_intact
        if resumable and is_intact(path):
            read(path)  # which says why it is refused; a run must not begin anew because of that
        _pass_over(path)
        return None
    return None if resumable and "optimizer_states" not in content else (step, epoch, written)


def _pass_over(path: Path) -> None:
    rank_zero_warn(f"'{path}' is passed over: it is damaged, or no checkpoint of a run")
