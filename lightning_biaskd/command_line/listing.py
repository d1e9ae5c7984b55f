"""Names that the command line knows, for ``biaskd list`` and for suggestions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType

from lightning.pytorch import Callback, LightningDataModule
from torch import nn

import lightning_biaskd.callbacks
import lightning_biaskd.data
import lightning_biaskd.distillers
import lightning_biaskd.models
from lightning_biaskd.command_line.shipped import CONFIGS
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError

USAGE = """usage: biaskd list [methods] [networks] [data] [callbacks] [configs]

Prints the names of methods, networks, data modules, callbacks and shipped configuration files; of all without a kind.
Any other class or function is named by its import path, for example torchvision.models.resnet18."""


def names() -> dict[str, list[str]]:
    """Every name by its kind, as the command line takes it."""
    files = sorted(path.relative_to(CONFIGS.parent).as_posix() for path in CONFIGS.rglob("*.yaml"))
    return {
        "methods": [
            name for name in _classes(lightning_biaskd.distillers, Distiller) if not name.endswith("Distiller")
        ],
        "networks": [f"lightning_biaskd.models.{name}" for name in _networks()],
        "data": [*_classes(lightning_biaskd.data, LightningDataModule)],
        "callbacks": [*_classes(lightning_biaskd.callbacks, Callback)],
        "configs": [file for file in files if not file.startswith("configs/parts/")],
    }


def _classes(module: ModuleType, base: type) -> Iterator[str]:
    for name in sorted(module.__all__, key=str.lower):
        found = getattr(module, name)
        if inspect.isclass(found) and issubclass(found, base) and not inspect.isabstract(found):
            yield name


def _networks() -> Iterator[str]:
    for name in lightning_biaskd.models.__all__:
        found = getattr(lightning_biaskd.models, name)
        built = found if inspect.isclass(found) else inspect.signature(found, eval_str=True).return_annotation
        if inspect.isclass(built) and issubclass(built, nn.Module) and name != "cifar_stem":  # a part of networks
            yield name


def list_names(arguments: list[str]) -> None:
    """Runs ``biaskd list``.

    Args:
        arguments: kinds of names; all of them if empty.

    Raises:
        UserError: an unknown kind.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return
    known = names()
    if unknown := set(arguments) - set(known):
        raise UserError(f"biaskd list knows no {', '.join(sorted(unknown))}: name some of {', '.join(known)}")
    for kind in arguments or known:
        print(f"{kind}:", *(f"  {name}" for name in known[kind]), sep="\n")
