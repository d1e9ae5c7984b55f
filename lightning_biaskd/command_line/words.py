"""``biaskd words``: what a shell can complete."""

from __future__ import annotations

import inspect
from contextlib import suppress
from itertools import chain
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

import lightning_biaskd.data
from lightning_biaskd.command_line.listing import names
from lightning_biaskd.command_line.parser import BiasKDCLI, command_line
from lightning_biaskd.training.classification import ClassificationModule
from lightning_biaskd.training.detection import DetectionModule
from lightning_biaskd.training.detection_distillation import DetectionDistillationModule
from lightning_biaskd.training.distillation import DistillationModule


class _ParserRead(Exception):  # noqa: N818  (no error: nothing else is wanted of the command line)
    pass


def words(cli_class: type[BiasKDCLI] = BiasKDCLI) -> list[str]:
    """Commands, options and names, sorted.

    Args:
        cli_class: whose commands and options they are.
    """
    found = {"compare", "list", "prepare", "words", *chain(*names().values()), *map(_name, _MODULES)}
    found |= {f"--model.{name}" for kind in _MODULES for name in _arguments(kind)}
    data = [getattr(lightning_biaskd.data, name) for name in names()["data"]]
    found |= {f"--data.{name}" for kind in data for name in _arguments(kind)}

    class Reading(cli_class):  # type: ignore[misc, valid-type]
        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            commands: Any = parser._subcommands_action
            for command, options in commands._name_parser_map.items():
                found.update([command, *options._option_string_actions])
            raise _ParserRead

    with suppress(_ParserRead):
        command_line(Reading, [])
    return sorted(word for word in found if len(word) > 2)


_MODULES = (DistillationModule, ClassificationModule, DetectionDistillationModule, DetectionModule)


def _name(kind: type) -> str:
    return kind.__name__


def _arguments(kind: type) -> set[str]:
    own = [base.__init__ for base in kind.__mro__ if base.__module__.startswith("lightning_biaskd")]  # type: ignore[misc]
    return {name for constructor in own for name in inspect.signature(constructor).parameters} - {"self", "kwargs"}
