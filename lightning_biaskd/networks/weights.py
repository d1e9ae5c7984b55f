"""Weights from wherever they are: our checkpoints, other people's, safetensors, or those that ship with the package."""

from __future__ import annotations

import pickle
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.download import fetch

_BUILTIN = Path(__file__).parent / "builtin"
_SHOWN = 10
_KEYS = ("state_dict", "model")
_AVERAGED = ("state_dict_ema", "model_ema", *_KEYS)
_RAW = ("current_model_state", *_KEYS)


def load_weights(model: nn.Module, source: str | Path, strict: bool = True, ema: bool = True) -> None:
    """Loads a network's weights, in place.

    Takes a plain state dict, one under ``"state_dict"``, ``"model"`` or any one other key, one whose names carry a
    prefix (``module.``, ``_orig_mod.``), checkpoints of :class:`~lightning_biaskd.ClassificationModule` and of
    :class:`~lightning_biaskd.DistillationModule` (the student), and ``.safetensors``. Only tensors are ever unpickled.

    Args:
        model: takes the weights.
        source: path of a file; ``builtin:NAME`` for weights that ship with the package; or
            ``https://HOST/FILE#sha256=HEX`` or ``hf://OWNER/REPOSITORY/FILE[@REVISION]#sha256=HEX``, fetched once into
            torch.hub's cache and verified before it is opened.
        strict: every name must match. Otherwise names that are missing or left over are passed by; shapes must match
            either way.
        ema: from a file that holds both averaged weights and those that were averaged (of
            :class:`~lightning_biaskd.callbacks.EMA`, Lightning's ``WeightAveraging``, timm), take the average.

    Raises:
        UserError: no such file, a file that can't be fetched, holds code or is damaged, or weights of another network.
    """
    content = read(locate(str(source)))
    state = _strip_prefix(_tensors(content, source, _AVERAGED if ema else _RAW), model)
    problem = mismatch(model, state, strict)
    if problem:
        raise UserError(f"{source} does not fit {type(model).__name__}: {problem}")
    model.load_state_dict(state, strict=strict)


def mismatch(model: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> str | None:
    """Says in one line how a state dict differs from a network's, and what probably happened; ``None`` if it fits."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    found = [f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}" for name in shapes]
    if strict:
        found += [f"{name} is missing" for name in missing] + [f"{name} is not in the network" for name in extra]
    if not found:
        return None
    stem, classifier = next(iter(own)), list(own)[-1].rpartition(".")[0]
    heads = [name for name in shapes if name.rpartition(".")[0] == classifier]
    reasons = []
    if not missing and not extra and set(shapes) <= {stem, *heads}:
        reasons += ["another stem (that for small images is 3x3) or number of input channels"] * (stem in shapes)
        reasons += [f"another number of classes ({len(state[name])} in the file)" for name in heads[:1]]
    reason = " and ".join(reasons) or "another network"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"probably {reason}; {'; '.join(found[:_SHOWN])}{more}"


def locate(source: str) -> Path:
    """The file that a source of :func:`load_weights` stands for."""
    if source.startswith("builtin:"):
        name = source.removeprefix("builtin:")
        path = _BUILTIN / f"{name}.safetensors"
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in _BUILTIN.glob("*.safetensors")))
            raise UserError(f"no weights {name!r} ship with the package: choose builtin: and one of {names}")
        return path
    if "://" in source:
        return fetch(source)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"no weights at {source!r}: give the path of a checkpoint or .safetensors file")
    return path


def read(path: Path) -> Any:
    """What a checkpoint holds, its tensors on the CPU; nothing but tensors and plain values is unpickled."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path) and path.read_bytes()[:1] != pickle.PROTO:
            raise UserError(f"{path} is no readable checkpoint but text, such as a web page: fetch it anew") from None
        raise UserError(
            f"{path} holds pickled code beside weights and was not opened: save its state_dict() alone and load that"
        ) from None
    except (RuntimeError, SafetensorError, EOFError, ValueError) as error:
        reason = str(error) or "it ends too early"
        raise UserError(f"{path} is no readable checkpoint ({reason.splitlines()[0]}): copy it anew") from None


def _tensors(content: Any, source: str | Path, keys: Sequence[str]) -> dict[str, Tensor]:
    """The state dict in a file: under the first of the keys that is there, under the only key that holds one, or it."""
    while isinstance(content, Mapping) and not _is_state(content):
        inside = {key: value for key, value in content.items() if isinstance(value, Mapping) and value}
        states = [key for key, value in inside.items() if _is_state(value)]
        chosen = [key for key in keys if key in inside] or (states if len(states) == 1 else [])
        content = inside[chosen[0]] if chosen else None
    if not isinstance(content, Mapping):
        raise UserError(
            f"{source} holds no state dict: expected names and tensors, plain or under 'state_dict' or 'model'"
        )
    return dict(content)


def _is_state(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in content.values())


def _strip_prefix(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Takes the names under the prefix with which most of the network's names are found."""
    own = model.state_dict()
    prefixes = Counter(
        name[: -len(wanted)] for wanted in own for name in state if name == wanted or name.endswith("." + wanted)
    )
    prefix = max(prefixes, key=lambda p: (prefixes[p], p == "" or "student" in p), default="")
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
