"""Digests of the files that a run is made of, and of all that these name."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import sha256


def content_of(path: str) -> bytes:
    """Digest of a YAML file and of the files that it names, such as a teacher's weights."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        named = named_in(yaml.safe_load(text), Path(path).parent)
    except OSError:
        raise UserError(f"no file {path!r}, which the matrix names") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    return hashlib.sha256(text.encode() + named).digest()


def named_in(value: Any, *folders: Path, levels: int = 5) -> bytes:
    """Digests of all files whose paths occur in a value, relative to the working directory or to another folder.

    Args:
        value: of YAML.
        folders: to look in, after the working directory.
        levels: how many files may name each other in a chain.
    """
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return b"".join(named_in(item, *folders, levels=levels) for item in items)
    if not isinstance(value, str) or not value or "\0" in value:
        return b""
    for folder in (Path(), *folders):
        with suppress(OSError, RuntimeError):  # no path, such as a long text or an unknown ~user
            path = folder / Path(value).expanduser()
            if path.is_file():
                inner = named_in(_inner(path), path.parent, levels=levels - 1) if levels else b""
                return _file(str(path), path.stat().st_mtime_ns) + inner
            if (path / "config.json").is_file():  # of a network that was saved by save_pretrained
                parts = sorted(part for part in path.iterdir() if part.is_file())
                return b"".join(_file(str(part), part.stat().st_mtime_ns) for part in parts)
    return b""


def _inner(path: Path) -> Any:
    """What a file names in its turn: other YAML files, or the parts of sharded weights."""
    try:
        if path.suffix in (".yaml", ".yml"):
            return yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name.endswith(".index.json"):
            return sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    except (ValueError, yaml.YAMLError, KeyError, AttributeError):
        pass  # the run itself says what is wrong with it
    return None


@cache
def _file(path: str, _modified: int) -> bytes:
    return bytes.fromhex(sha256(Path(path)))
