"""Where a run keeps its files."""

import os
from pathlib import Path

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import Trainer

from lightning_biaskd.files import atomic_write


def run_folder(trainer: Trainer) -> str:
    """The folder of a run, where Lightning puts its ``checkpoints``: a path, or the address of a remote one."""
    if not trainer.loggers:
        return str(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(logger.save_dir or trainer.default_root_dir, str(logger.name), version)  # noqa: PTH118


def is_remote(folder: str | Path) -> bool:
    """Whether fsspec must read and write there."""
    return "://" in str(folder)


def write_to(folder: str, name: str, content: bytes) -> str:
    """Writes a file into the folder of a run, whole if the folder is local.

    Returns:
        Where it is.
    """
    place = os.path.join(folder, name)  # noqa: PTH118  (an address is no Path)
    if is_remote(folder):
        system = get_filesystem(folder)
        system.makedirs(folder, exist_ok=True)
        system.pipe_file(place, content)
    else:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(place)) as file:
            file.write(content)
    return place


def link_last(run: str) -> None:
    """Links ``last``, next to the versions of a run, to the version that finished last."""
    folder = Path(run)
    if is_remote(run) or not folder.name.startswith("version_"):
        return
    draft = folder.parent / f".last.{os.getpid()}"
    try:
        draft.symlink_to(folder.name)
        draft.replace(folder.parent / "last")
    except OSError:  # links can't be made everywhere, and the version's own name does too
        draft.unlink(missing_ok=True)
