"""The one way from a weights or checkpoint file to its content. No code in a file runs, and damage is refused."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.download import fetch
from lightning_biaskd.networks.file_kinds import LEGACY, SAFETENSORS, ZIP, another_kind, kind_of_zip

_BUILTIN = Path(__file__).parent / "builtin"
_INDEX = ".index.json"
_IN_FOLDERS = (
    *("model.safetensors", "model.safetensors.index.json"),  # of save_pretrained, in the order transformers takes them
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_UNPACKED = 16  # times the size of the file; torch itself doesn't compress
_SLACK = 1 << 20
_FOLDER = 0x10  # in the attributes of an entry of a zip file


def locate(source: str) -> Path:
    """The file that a source of :func:`~lightning_biaskd.load_weights` names.

    Raises:
        UserError: there is no such file, or it can't be fetched.
    """
    if source.startswith("builtin:"):
        name = source.removeprefix("builtin:")
        path = _BUILTIN / f"{name}.safetensors"
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in _BUILTIN.glob("*.safetensors")))
            raise UserError(f"no weights {name!r} ship with the package: choose builtin: and one of {names}")
        return path
    if "://" in source:
        return fetch(source)
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return path
        if source and path.is_dir():
            return _in_folder(path)
    except (OSError, RuntimeError, ValueError) as error:  # no permission, too long a name, an unknown ~user
        raise UserError(f"can't open {source!r} ({_reason(error)}): check the path and its permissions") from error
    beside = sorted(path.parents[2].glob("*/checkpoints/*.ckpt")) if len(path.parents) > 2 else []  # of other versions
    known = f"; there is {', '.join(repr(str(other)) for other in beside[:3])}" if beside else ""
    raise UserError(f"no weights at {source!r}: give the path of a checkpoint or .safetensors file{known}")


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{str(folder)!r} is a folder without {', '.join(_IN_FOLDERS)}: name the file in it that holds the weights"
    )


def read(path: Path) -> Any:
    """Reads a checkpoint, with its tensors on the CPU. Unpickles nothing but tensors and plain values.

    Reads what ``torch.save`` wrote (also before torch 1.6), safetensors, and the index of sharded safetensors or
    checkpoints as ``save_pretrained`` writes it. Which of them a file is, is told by its first bytes. The checksums of
    a zip file are verified, which ``torch.load`` doesn't do. Safetensors and files from before torch 1.6 have none.

    Raises:
        UserError: a file of another kind, one that holds code or is damaged, or one that can't be opened.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1024)
        if path.name.endswith(_INDEX):
            return _read_shards(path)
        if kind := another_kind(head, path):
            raise UserError(f"{path} is no readable checkpoint but {kind}")
        if SAFETENSORS.match(head) or (path.suffix == ".safetensors" and not head.startswith((ZIP, LEGACY))):
            return load_file(path)
        if head.startswith(ZIP):
            _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors, which are refused later
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"can't read {path} ({_reason(error)}): check the path and its permissions") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} {_refused_pickle(str(error))}") from None
    except Exception as error:  # of many kinds, whatever a parser meets in a damaged file
        raise UserError(f"{path} is no readable checkpoint ({_reason(error)}): copy or download it again") from None


def _check_zip(path: Path) -> None:
    """Refuses a zip file that is damaged, holds no weights, or unpacks to much more than its size."""
    with zipfile.ZipFile(path) as parts:
        names, size = parts.namelist(), path.stat().st_size
        if kind := kind_of_zip(names):
            raise UserError(f"{path} is no readable checkpoint but {kind}")
        unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > _UNPACKED * size + _SLACK:
            raise UserError(
                f"{path} was not opened: its {size} bytes unpack to {unpacked}, which no checkpoint's do; save it with "
                "torch.save, which doesn't compress"
            )
        # torch reads the first of two entries, Python the last; and torch leaves the memory of folders unset
        odd = len(set(names)) < len(names) or any(part.external_attr & _FOLDER for part in parts.infolist())
        damaged = "its table of contents" if odd else parts.testzip()
    if damaged:
        raise UserError(f"{path} is no readable checkpoint ({damaged} is damaged): copy or download it again")


def _read_shards(path: Path) -> dict[str, Tensor]:
    """Joins the files that an index of ``save_pretrained`` lists."""
    files: dict[str, set[str]] = defaultdict(set)
    try:
        for name, file in json.loads(path.read_bytes())["weight_map"].items():
            if Path(file).name != file or file.endswith(_INDEX):
                raise ValueError(f"{file!r} is not the name of a file beside it")
            files[file].add(name)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no index of sharded weights ({_reason(error)}): expected a weight_map from names to files"
        ) from error
    state: dict[str, Tensor] = {}
    for file, names in files.items():
        shard = path.with_name(file)
        if not shard.is_file():
            raise UserError(f"{path} lists {file}, which is not next to it: copy or download that file too")
        content = read(shard)
        if lost := sorted(names - set(content if isinstance(content, dict) else ())):
            raise UserError(f"{path} expects {lost[0]} in {file}, which doesn't hold it: download both files again")
        state.update(content)
    return state


def _refused_pickle(error: str) -> str:
    """What to say of a file that the restricted unpickler of torch refuses."""
    named = re.search(r"GLOBAL (\S+)|unrecognized function (\S+)|but got <class '(\S+)'>", error)
    asked = f" (it asks for {next(filter(None, named.groups()))})" if named else ""
    if named is None and "Unsupported operand" in error:
        return "is no readable checkpoint (its pickle is damaged or not one of torch.save): copy or download it again"
    return (
        f"holds pickled code in addition to weights{asked} and was not opened: save its state_dict() alone and load "
        "that, or download it again if it should hold nothing else"
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip().splitlines()
    if isinstance(error, EOFError) or not text:
        return "it ends too early" if isinstance(error, EOFError) else type(error).__name__
    return text[0]
