"""Where ``--ckpt_path last`` looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import remove_stale_drafts
from lightning_biaskd.training.checkpoint import newest
from lightning_biaskd.training.run_folder import is_remote, run_folder


def last_checkpoint(trainer: Trainer, may_start_new: bool) -> Path | None:
    """The checkpoint that is furthest in training among all that runs of this name wrote.

    It looks where the Trainer's ``ModelCheckpoint`` callbacks write: in their ``dirpath``, or in the ``checkpoints``
    folders of all versions of the run. A run without a logger has one folder, that of the Trainer.

    Args:
        trainer: of this run.
        may_start_new: return ``None`` if there is no checkpoint.

    Raises:
        UserError: there is none.
    """
    patterns = _patterns(trainer)
    candidates = {path.resolve() for folder, pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    for path in candidates:
        remove_stale_drafts(path)
    found = newest(candidates, resumable=may_start_new)
    if found is not None:
        rank_zero_info(f"going on from '{found}'")
    elif may_start_new:
        rank_zero_info("starting a new run")
    else:
        places = " or ".join(sorted({f"'{folder}'" for folder, _ in patterns})) or "a folder of this machine"
        raise UserError(f"there is no checkpoint in {places} yet")
    return found


def _patterns(trainer: Trainer) -> list[tuple[Path, str]]:
    """Folders, and what checkpoints in them are called."""
    run = run_folder(trainer)
    found: list[tuple[Path, str]] = []
    callbacks: list[Any] = [*trainer.checkpoint_callbacks] or [None]
    for callback in callbacks:
        depth = (getattr(callback, "filename", None) or "").count("/")  # val/acc1 in a file's name makes a folder
        names = ["*/" * level + "*.ckpt" for level in {0, depth}]
        folder = getattr(callback, "dirpath", None)
        if is_remote(folder or run):
            folder = folder or run
            rank_zero_warn(f"--ckpt_path last doesn't look in the remote folder '{folder}': copy a checkpoint from it")
        elif folder is not None:
            found += [(Path(folder), name) for name in names]
        elif not trainer.loggers:
            found += [(Path(run), f"checkpoints/{name}") for name in names]
        else:
            # a logger without a name shares its folder with other runs
            versions = "*" if trainer.loggers[0].name else "version_*"
            found += [(Path(run).parent, f"{versions}/checkpoints/{name}") for name in names]
    return found
