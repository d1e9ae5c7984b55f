"""Where a run keeps its files."""

import os
from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run, where Lightning puts its ``checkpoints``."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def link_last(folder: Path) -> None:
    """Links ``last``, next to the versions of a run, to the version that finished last."""
    if not folder.name.startswith("version_"):
        return
    draft = folder.parent / f".last.{os.getpid()}"
    try:
        draft.symlink_to(folder.name)
        draft.replace(folder.parent / "last")
    except OSError:  # links can't be made everywhere, and the version's own name does too
        draft.unlink(missing_ok=True)
