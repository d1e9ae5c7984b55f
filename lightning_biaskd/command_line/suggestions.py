"""Names that a misspelt one may have meant."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import torch
from lightning.pytorch import Trainer

import lightning_biaskd
from lightning_biaskd.command_line.commands import Commands
from lightning_biaskd.command_line.listing import names


def meant(message: str) -> str:
    """The suggestion for a parser's message about an unknown class, option or command; empty if there is none."""
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        module, name = found.groups()
        return _hint(name, dir(sys.modules.get(module, lightning_biaskd.models)), f"{module}.")
    if found := re.search(r"Expected a dot import path string: ([\w.]+)", message):
        return _hint(found[1], _classes())
    if found := re.search(r"No module named '([\w.]+)'", message):
        return _hint(found[1], sys.modules)
    if found := re.search(r"Option '([\w.]+)' is not accepted|Key '([\w.]+)' is not expected", message):
        return _hint((found[1] or found[2]).rpartition(".")[2], _options())
    if found := re.search(r"unrecognized arguments: --([\w.]+)", message):
        words = found[1].split(".")
        hints = [_hint(word, _options()) for word in words if word not in _options()]
        return next(filter(None, hints), "")
    if found := re.search(r"invalid choice: '(\w+)'", message):
        return _hint(found[1], ["fit", "validate", "test", "predict", "compare", "list", "prepare", *_public(Commands)])
    return ""


def _hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    known = set(known) - {name}  # which another class may have
    near = get_close_matches(name, known, 1, 0.7)
    if not near:
        lower = {other.lower(): other for other in known}
        near = [lower[other] for other in get_close_matches(name.lower(), lower, 1, 0.7)]
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _classes() -> set[str]:
    modules = (lightning.pytorch.callbacks, lightning.pytorch.loggers, torch.optim, torch.optim.lr_scheduler)
    found = {name for module in modules for name in vars(module) if name[0].isupper()}
    ours = {kind: known for kind, known in names().items() if kind != "configs"}
    return found | {name for known in ours.values() for name in known} | set(lightning_biaskd.__all__)


def _options() -> set[str]:
    """Parameters of the Trainer and of every class and function that is listed."""
    found = {"model", "data", "trainer", "optimizer", "seed_everything", "ckpt_path", "config", *_parameters(Trainer)}
    for module in (lightning_biaskd, lightning_biaskd.distillers, lightning_biaskd.models, lightning_biaskd.data):
        for name in module.__all__:
            found |= _parameters(getattr(module, name))
    return found


def _parameters(builder: Any) -> set[str]:
    try:
        return set(inspect.signature(builder).parameters)
    except (TypeError, ValueError):
        return set()


def _public(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]
