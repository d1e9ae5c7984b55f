"""YAML files of version 0.1: read so that its runs can be tested and resumed as what they were."""

from __future__ import annotations

from typing import Any

from jsonargparse import get_loader, set_loader
from yaml import YAMLError

from lightning_biaskd.errors import UserError

RETIRED = {"teacher_stream": (False, "name the teacher as FrozenTeacher with stream: true")}
"""Arguments of the module in 0.1: the default, and what to write in place of another value."""

_load_yaml = get_loader("yaml")


def load_yaml(text: str) -> Any:
    """The content of a YAML file, without retired options, and with those of a strategy that 0.1 had no words for.

    Raises:
        UserError: a retired option has another value than its default.
    """
    content = _load_yaml(text)
    model = content.get("model") if isinstance(content, dict) else None
    arguments = model.get("init_args", model) if isinstance(model, dict) else {}
    for name, (default, remedy) in RETIRED.items():
        if isinstance(arguments, dict) and arguments.pop(name, default) != default:
            raise UserError(f"model.{name} was an option of version 0.1: remove it, and {remedy}")
    bias = arguments.get("bias") if isinstance(arguments, dict) else None
    strategy = bias.get("init_args") if isinstance(bias, dict) else None
    if isinstance(strategy, dict) and "sync" in strategy:  # written by a run, which names every option
        for name in ("trust", "label_trust"):
            strategy.setdefault(name, None)
    return content


def read_files_of_version_0_1() -> None:
    """Makes jsonargparse read YAML by :func:`load_yaml`."""
    set_loader("yaml", load_yaml, exceptions=(YAMLError,))
