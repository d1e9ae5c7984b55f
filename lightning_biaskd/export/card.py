"""The JSON card next to an exported network: what it is, what it sees, and how to rebuild it safely."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.export.untrusted import Size, confined
from lightning_biaskd.files import atomic_write
from lightning_biaskd.networks.inputs import InputSpec

_KNOWN = ("lightning_biaskd", "torchvision", "timm")
_NETWORKS = ("lightning_biaskd.models.", "torchvision.models.", "timm.models.", "timm.create_model")
_FETCHING = (  # arguments of these that would read weights or settings from elsewhere
    *("pretrained", "weights", "weights_backbone", "pretrained_backbone", "checkpoint_path", "cache_dir"),
    *("pretrained_cfg", "pretrained_cfg_overlay"),
)


def card_of(path: Path) -> Path:
    """Where the card of an exported file is: in the layout of the hub ``config.json``, elsewhere ``FILE.json``."""
    return path.with_name("config.json" if path.name == "model.safetensors" else f"{path.name}.json")


def read_card(path: Path) -> dict[str, Any]:
    """The card of an exported file.

    Raises:
        UserError: there is none, or it is no card.
    """
    place = card_of(path)
    try:
        card = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} has no card: {place.name}, which the export writes next to it, is missing") from None
    except OSError as error:
        raise UserError(f"can't read {place} ({error.strerror}): check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is no JSON ({error}): export the network again") from None
    if not isinstance(card, dict) or not isinstance(card.get("file"), str) or not isinstance(card.get("sha256"), str):
        raise UserError(f"{place} is no card of an exported network: it names no file and sha256")
    return card


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Writes the card of an exported file next to it, without the entries that are ``None``."""
    known = {name: value for name, value in card.items() if value is not None}
    with atomic_write(card_of(path), "w") as file:
        file.write(json.dumps(known, indent=2) + "\n")


def describe(
    network: nn.Module, spec: Mapping[str, Any] | None, input_spec: InputSpec | Mapping[str, Tensor]
) -> dict[str, Any]:
    """The part of a card that is about the network, its keys named as in timm's configurations where these have it."""
    arguments = {} if spec is None else spec["init_args"]
    name = type(network).__name__ if spec is None else spec["class_path"].rpartition(".")[2]
    if not isinstance(input_spec, InputSpec):
        return {"architecture": name, "model": spec, "inputs": list(input_spec)}
    seen = {"input_size": input_spec.shape, "mean": input_spec.mean, "std": input_spec.std}
    card = {"architecture": name, "model": spec, "pretrained_cfg": {**seen, "interpolation": input_spec.interpolation}}
    if spec is None or spec["class_path"] != "timm.create_model":
        return card
    own = inspect.signature(_imported("timm.create_model")).parameters
    rest = {key: value for key, value in arguments.items() if key not in own and key != "num_classes"}
    return {**card, "architecture": arguments["model_name"], "model_args": rest}


def recipe(spec: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How to build a network, of plain values alone, from a ``class_path`` and its arguments as YAML files have them.

    Arguments that would fetch weights are left out; ``None`` where an argument is itself an object.
    """
    if spec is None:
        return None
    arguments = {**spec.get("init_args", {}), **spec.get("dict_kwargs", {})}
    if not _plain(arguments) or spec["class_path"].endswith(".from_pretrained"):  # which fetches from elsewhere
        return None
    return {"class_path": spec["class_path"], "init_args": _without_weights(spec["class_path"], arguments)}


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "class_path" not in value and all(map(_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float)


def build(spec: Any, trusted: bool, size: Size | None = None) -> nn.Module:
    """Builds the network that a card describes.

    What is named must be an ``nn.Module`` or a function annotated to return one. Unless the card is trusted, it must be
    among the models of this package, torchvision or timm; no argument may name a place; and nothing is fetched.

    Args:
        spec: ``class_path`` and ``init_args``, plain values.
        trusted: whether the caller trusts where the card comes from.
        size: of the weights; an untrusted network that is much larger is not built.

    Raises:
        UserError: anything else.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise UserError("the card does not say how to build the network: build it and hand it over as model")
    path, arguments = spec["class_path"], spec.get("init_args", {})
    if not isinstance(arguments, dict) or not _plain(arguments):
        raise UserError(f"the card's init_args of {path} are no names and plain values: export the network again")
    if not trusted and not path.startswith(_NETWORKS):
        raise UserError(
            f"the card names {path}, which is not among the models of {', '.join(_KNOWN)}: if you trust where the card "
            "comes from, say trusted=True, or build the network and hand it over as model"
        )
    if not trusted and path.endswith(".from_pretrained"):
        raise UserError(f"the card builds its network by {path}, which fetches it: hand the network over as model")
    place = None if trusted else _named_place(arguments)
    if place is not None:
        raise UserError(
            f"the card builds {path} from {place!r}, a file or address: if you trust where the card comes from, say "
            "trusted=True, or build the network and hand it over as model"
        )
    builder = _imported(path)
    if not _gives_network(builder):
        raise UserError(f"the card names {path}, which is no network nor a function annotated to return one")
    arguments = _without_weights(path, arguments)
    if path.startswith("torchvision."):
        arguments |= {name: None for name in ("weights", "weights_backbone") if _takes(builder, name)}
    try:
        if trusted:
            return builder(**arguments)  # type: ignore[no-any-return]
        with confined(size or Size(math.inf, math.inf)):
            return builder(**arguments)  # type: ignore[no-any-return]
    except UserError:
        raise
    except Exception as error:  # of many kinds, from the code of the network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} does not take the card's arguments: {reason}") from error


def _named_place(value: Any) -> str | None:
    """A string in an argument that could name a file, a repository or an address, such as ``hf-hub:OWNER/NAME``."""
    if isinstance(value, str):
        return value if any(sign in value for sign in ":/\\~") else None
    inside = [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return next((place for place in map(_named_place, inside) if place is not None), None)


def _takes(builder: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return False


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError):
        raise UserError(
            f"the card names {path}, which can't be imported here: install the package it is from"
        ) from None


def _without_weights(path: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    dropped = _FETCHING if path.partition(".")[0] in _KNOWN else ()
    return {name: value for name, value in arguments.items() if name not in dropped}


def _gives_network(builder: Any) -> bool:
    if not inspect.isclass(builder):
        try:
            builder = typing.get_type_hints(builder).get("return")
        except (TypeError, NameError):
            return False
    return inspect.isclass(builder) and issubclass(builder, nn.Module)
