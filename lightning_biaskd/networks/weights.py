"""Weights from wherever they are: our checkpoints, other people's, safetensors, or those that ship with the package."""

from __future__ import annotations

import copy
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.mismatch import RECOMPUTED, mismatch
from lightning_biaskd.networks.reading import locate, read

__all__ = ["load_weights", "locate", "mismatch", "read"]

_KEYS = ("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "params", "weights")
_RAW = ("current_model_state", *_KEYS)
_AVERAGED = re.compile("(^|_)(ema|swa|avg|averaged?)(_|$)|shadow")
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COUNTED = {"total_ops", "total_params", "n_averaged"}  # by thop and by torch's AveragedModel
_DEPTH = 8


def load_weights(model: nn.Module, source: str | Path, strict: bool = True, ema: bool = True) -> None:
    """Loads a network's weights, in place.

    Takes a plain state dict, one under ``"state_dict"``, ``"model"`` or any one other key, one whose names carry a
    prefix (``module.``, ``backbone.``) or names of wrappers (``_orig_mod``), checkpoints of
    :class:`~lightning_biaskd.ClassificationModule` and of :class:`~lightning_biaskd.DistillationModule` (the student),
    ``.safetensors``, and folders as ``save_pretrained`` of Hugging Face writes them. Only tensors are ever unpickled.

    As torch does for old files, it takes weights without ``num_batches_tracked``. The same holds for other buffers that
    a network computes itself. It is stricter than torch with types: integers are not loaded as floats.

    Args:
        model: takes the weights.
        source: path of a file or folder; ``builtin:NAME`` for weights that ship with the package; or
            ``https://HOST/FILE#sha256=HEX`` or ``hf://OWNER/REPOSITORY/FILE[@REVISION]#sha256=HEX``, fetched once into
            torch.hub's cache and verified before it is opened.
        strict: every name must match. Otherwise missing and additional names are ignored; shapes must match either
            way.
        ema: from a file that holds both averaged weights and those that were averaged (of
            :class:`~lightning_biaskd.callbacks.EMA`, Lightning's ``WeightAveraging``, timm), take the average.

    Raises:
        UserError: no such file, a file that can't be fetched, holds code or is damaged, or weights of another network.
    """
    content = _tensors(read(locate(str(source))), source, ema)
    state = _completed(_named_as_in(model, content, source, ema), model)
    problem = mismatch(model, state, strict)
    if problem and (not strict or mismatch(model, state, strict=False) or not _accepts(model, state)):
        raise UserError(f"{source} does not fit {type(model).__name__}: {problem}")
    try:
        _load(model, state, strict)
    except RuntimeError as error:  # from a network that reads its weights by code of its own
        raise UserError(
            f"{source} does not fit {type(model).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error


def _tensors(content: Any, source: str | Path, ema: bool) -> Mapping[str, Tensor]:
    """The state dict in a file: an average, or what is under the first of the known keys or the only key, or it."""
    holds: dict[int, bool] = {}
    for _ in range(_DEPTH):
        inside = [key for key, value in _items(content) if isinstance(value, Mapping) and _holds_tensors(value, holds)]
        averaged = [key for key in inside if ema and _AVERAGED.search(key)]
        chosen = averaged + [key for key in (_KEYS if ema else _RAW) if key in inside]
        if not chosen and len(inside) == 1 and not any(isinstance(value, Tensor) for _, value in _items(content)):
            chosen = inside
        if not chosen:
            break
        content = content[chosen[0]]
    else:
        inside = []
    if any(isinstance(value, Tensor) for _, value in _items(content)):
        return content  # type: ignore[no-any-return]
    several = f"; it has several, under {', '.join(map(repr, inside[:5]))}: save one of them alone" if inside else ""
    raise UserError(
        f"{source} holds no state dict: expected names and tensors, plain or under 'state_dict' or 'model'{several}"
    )


def _items(content: Any) -> list[tuple[str, Any]]:
    return [item for item in content.items() if isinstance(item[0], str)] if isinstance(content, Mapping) else []


def _holds_tensors(content: Mapping[Any, Any], known: dict[int, bool], depth: int = 0) -> bool:
    """Whether there are tensors under names in a dict, at any depth; it may hold itself."""
    if id(content) not in known:
        known[id(content)] = False
        known[id(content)] = depth < _DEPTH and any(
            isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_tensors(value, known, depth + 1))
            for _, value in _items(content)
        )
    return known[id(content)]


def _named_as_in(model: nn.Module, content: Mapping[str, Tensor], source: str | Path, ema: bool) -> dict[str, Tensor]:
    """Takes the names under the prefix with which most of the network's names are found, and names them as it does."""
    own = {_unwrapped(name): name for name in model.state_dict()}
    given = [(_unwrapped(name), name) for name, value in _items(content) if isinstance(value, Tensor)]
    prefix = _prefix(model, own, [(name, content[key]) for name, key in given], source, ema)
    state: dict[str, Tensor] = OrderedDict()
    for name, key in given:
        if name.startswith(prefix):
            place = own.get(name[len(prefix) :], name[len(prefix) :])
            if place in state:
                raise UserError(f"{source} holds {place} twice, one of them as {key}: save one network's weights alone")
            state[place] = content[key]
    versions = getattr(content, "_metadata", None)  # of the modules, by which torch reads older files
    if isinstance(versions, Mapping):
        modules = {_unwrapped(name): name for name, _ in model.named_modules()}
        places = {f"{_unwrapped(name)}.": version for name, version in _items(versions)}
        state._metadata = {  # type: ignore[attr-defined]
            modules[place[len(prefix) : -1]]: {"version": version.get("version")}
            for place, version in places.items()
            if isinstance(version, Mapping) and place.startswith(prefix) and place[len(prefix) : -1] in modules
        }
    return state


def _unwrapped(name: str) -> str:
    """A name without those of torch's wrappers: of several processes, of compilation, of sharding."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefix(
    model: nn.Module, own: Mapping[str, str], given: list[tuple[str, Tensor]], source: str | Path, ema: bool
) -> str:
    wanted = model.state_dict()
    names, shapes = Counter[str](), Counter[str]()
    for name, value in given:
        parts = name.split(".")
        for n in range(len(parts)):
            if (rest := ".".join(parts[n:])) in own:
                prefix = name[: len(name) - len(rest)]
                names[prefix] += 1
                shapes[prefix] += getattr(wanted[own[rest]], "shape", None) == value.shape

    def preference(prefix: str) -> tuple[int, int, int]:
        averaged = bool({"ema", "swa", "averaged"} & set(prefix.replace("_", ".").split(".")))
        usual = 1 if prefix in ("", "model.") or "student" in prefix else 0
        return names[prefix], shapes[prefix], (2 if ema else -1) if averaged else usual

    ranked = sorted(names, key=preference, reverse=True)
    if not ranked:
        return ""
    best = preference(ranked[0])
    equal = [prefix for prefix in ranked if preference(prefix) == best]
    if len(equal) > 1 and best[1] == len(own):
        raise UserError(
            f"{source} holds several networks that fit, under {', '.join(map(repr, equal[:5]))}: save one of them alone"
        )
    return ranked[0]


def _completed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Leaves out what is only counted, and fills in what the network knows itself."""
    own = model.state_dict()
    for name in list(state):
        if name not in own and (RECOMPUTED.search(name) or name.rpartition(".")[2] in _COUNTED):
            del state[name]
    shared = {_memory(own[name]): name for name in state if name in own}  # safetensors hold shared weights once
    for name, value in own.items():
        if name not in state and RECOMPUTED.search(name):
            state[name] = value
        elif name not in state and _memory(value) in shared:
            state[name] = state[shared[_memory(value)]]
        elif name in state and state[name].numel() == 1 and getattr(value, "shape", None) == ():
            state[name] = state[name].reshape(())  # scalars were vectors before torch 0.4
    return state


def _memory(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Tensor) or torch.nn.parameter.is_lazy(value) or value.is_meta or not value.numel():
        return (id(value),)
    return value.data_ptr(), value.shape, value.stride()


def _accepts(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the network itself can read other names, as torch's modules do with those of older versions."""
    try:
        _load(copy.deepcopy(model), state, strict=True)
    except Exception:  # of many kinds, from copying or from the network's own code
        return False
    return True


def _load(model: nn.Module, state: Mapping[str, Tensor], strict: bool) -> None:
    try:
        model.load_state_dict(state, strict=strict)
    except ValueError:  # as torchvision's MNASNet does where the file doesn't tell the versions of modules
        versioned = OrderedDict(state)
        versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
        model.load_state_dict(versioned, strict=strict)
