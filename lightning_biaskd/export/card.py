"""The JSON card beside an exported network: what it is, what it sees, and how to build it again, safely."""

from __future__ import annotations

import importlib
import inspect
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.inputs import InputSpec

_KNOWN = ("lightning_biaskd", "torchvision", "timm")
_NETWORKS = ("lightning_biaskd.models.", "torchvision.models.", "timm.models.", "timm.create_model")
_FETCHING = ("pretrained", "weights", "checkpoint_path")  # arguments of these that would read weights from elsewhere


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
        card = json.loads(place.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} has no card: {place.name}, written beside it by the export, belongs to it") from None
    except ValueError as error:
        raise UserError(f"{place} is no JSON ({error}): export the network anew") from None
    if not isinstance(card, dict) or not isinstance(card.get("file"), str) or not isinstance(card.get("sha256"), str):
        raise UserError(f"{place} is no card of an exported network: it names no file and sha256")
    return card


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Writes the card of an exported file beside it; what isn't known is left out."""
    known = {name: value for name, value in card.items() if value is not None}
    card_of(path).write_text(json.dumps(known, indent=2) + "\n")


def describe(network: nn.Module, spec: Mapping[str, Any] | None, input_spec: InputSpec) -> dict[str, Any]:
    """The part of a card that is about the network, its keys named as in timm's configurations where these have it."""
    arguments = {} if spec is None else spec["init_args"]
    name = type(network).__name__ if spec is None else spec["class_path"].rpartition(".")[2]
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
    if not _plain(arguments):
        return None
    return {"class_path": spec["class_path"], "init_args": _without_weights(spec["class_path"], arguments)}


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "class_path" not in value and all(map(_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float)


def build(spec: Any, trusted: bool) -> nn.Module:
    """Builds the network that a card describes.

    What is named must be an ``nn.Module`` or a function annotated to return one, among the models of this package,
    torchvision or timm unless the card is trusted, as others may open files that they are told; it is called with the
    card's plain values.

    Raises:
        UserError: anything else.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise UserError("the card does not say how to build the network: build it and hand it over as model")
    path, arguments = spec["class_path"], spec.get("init_args", {})
    if not trusted and not path.startswith(_NETWORKS):
        raise UserError(
            f"the card names {path}, which is not among the models of {', '.join(_KNOWN)}: if you trust where the card "
            "comes from, say trusted=True, or build the network and hand it over as model"
        )
    builder = _imported(path)
    if not _gives_network(builder):
        raise UserError(f"the card names {path}, which is no network nor a function annotated to return one")
    try:
        network: nn.Module = builder(**_without_weights(path, arguments))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not take the card's arguments: {error}") from error
    return network


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
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
