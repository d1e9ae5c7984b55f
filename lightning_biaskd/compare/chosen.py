"""The configuration of the row that a verdict chooses, ready for ``biaskd fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_biaskd.compare.matrix import folder_of
from lightning_biaskd.compare.table import Results
from lightning_biaskd.compare.verdict import Verdict
from lightning_biaskd.files import atomic_write


def write_chosen(verdict: Verdict, results: Results, output: Path) -> Path | None:
    """Writes ``chosen.yaml``, or ``chosen,AXIS=NAME.yaml`` where a matrix has several settings.

    It is the configuration that the chosen run was trained with, its seed included, except that checkpoints and logs
    go to a folder of the file's name.

    Args:
        verdict: on the rows of a setting.
        results: of the runs that are done.
        output: folder of the comparison.

    Returns:
        The file. ``None`` if no row is chosen or the run's configuration is missing; a file of an earlier verdict is
        then removed.
    """
    name = ",".join(filter(None, ("chosen", folder_of(verdict.setting))))
    path, config = output / f"{name}.yaml", _config(verdict, results, output)
    if config is None:
        path.unlink(missing_ok=True)
        return None
    with atomic_write(path, "w") as file:
        file.write(f"# {' '.join(verdict.text.split())}\n")
        yaml.safe_dump(_moved(config, output / name), file, sort_keys=False, allow_unicode=True)
    return path


def _config(verdict: Verdict, results: Results, output: Path) -> dict[str, Any] | None:
    """The configuration that the chosen run has saved."""
    if verdict.run is None:
        return None
    folder = verdict.run.folder(output, results[verdict.run]["fingerprint"])
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("trainer"), dict) else None


def _moved(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same configuration, which shows its progress and writes to another folder."""
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary"))  # a run of a matrix shows neither
    trainer = {**config["trainer"], **quiet, "default_root_dir": str(folder)}
    for part in _listed(trainer.get("logger")):
        if "save_dir" in part:
            part["save_dir"] = str(folder)
    for part in _listed(trainer.get("callbacks")):
        if "dirpath" in part:
            part["dirpath"] = None
    return {**config, "trainer": trainer}


def _listed(parts: Any) -> list[dict[str, Any]]:
    """The arguments of loggers or callbacks, of which a configuration has several, one or none."""
    found = [part for part in (parts if isinstance(parts, list) else [parts]) if isinstance(part, dict)]
    return [part["init_args"] for part in found if isinstance(part.get("init_args"), dict)]
