"""Names of version 0.1: old modules still import, and overriding an old method raises an error with the new name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lightning_biaskd.errors import UserError

_PACKAGE = "lightning_biaskd."
RENAMED = {
    "callbacks.dynamic_weights": ["training.dynamic_weights"],
    "card": ["export.card"],
    "checkpoint": ["training.checkpoint"],
    "checks": ["training.checks"],
    "classes": ["networks.class_map"],
    "classification": ["training.classification"],
    "cli": ["command_line.parser", "command_line.shipped", "__main__"],
    "commands": ["command_line.commands"],
    "compare.run": ["compare.worker"],
    "compare.runner": ["compare.scheduler"],
    "distillers.base": ["distiller", "logits"],
    "distillers.connectors": ["features.connectors"],
    "distillers.features": ["features.base"],
    "fast_teacher": ["teachers.backends"],
    "fill_cache": ["training.fill_cache"],
    "fingerprint": ["files"],
    "hashing": ["randomness.bits"],
    "inputs": ["networks.inputs"],
    "learning_rate": ["training.learning_rate"],
    "models.download": ["networks.download", "files"],
    "models.weights": ["networks.weights"],
    "module": ["training.distillation"],
    "outputs": ["networks.outputs"],
    "random_state": ["randomness.state"],
    "rehearsal": ["training.rehearsal"],
    "resumable": ["training.resumable"],
    "sharding": ["distributed.sharding"],
    "tap": ["networks.tap"],
    "teacher": ["teachers.frozen"],
    "teacher_cache": ["teachers.cache"],
}
"""Where the contents of a module of 0.1 are now."""
RENAMED_METHODS = {
    "answer": "outputs_of",
    "answers": "callback_outputs",
    "ask_both": "losses",
    "ask_teacher": "teacher_outputs_of",
    "check_teacher": "losses",
    "distillation_loss": "losses",
    "sample": "losses",
}
"""What to override in place of a method of 0.1's modules."""


class _Alias(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for place in RENAMED[self.__name__.removeprefix(_PACKAGE)]:
                module = import_module(_PACKAGE + place)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Aliases(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        known = fullname.startswith(_PACKAGE) and fullname.removeprefix(_PACKAGE) in RENAMED
        return ModuleSpec(fullname, self) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        place = RENAMED[spec.name.removeprefix(_PACKAGE)][0]
        warnings.warn(f"{spec.name} is now {_PACKAGE}{place}", FutureWarning, stacklevel=2)
        return _Alias(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: attributes are looked up in the new modules."""


def refuse_renamed_methods(cls: type) -> None:
    """Refuses a subclass that overrides a method of 0.1 that nothing calls any more.

    Raises:
        UserError: it does; the line names the method to override.
    """
    for old, new in RENAMED_METHODS.items():
        if old in vars(cls):
            raise UserError(f"{cls.__name__}.{old} overrides a method of version 0.1: override {new} now")


def find_renamed_modules() -> None:
    """Lets the modules of 0.1 be imported by their old names, with a ``FutureWarning``."""
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.append(_Aliases())
