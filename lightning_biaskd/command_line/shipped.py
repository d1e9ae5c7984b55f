"""The shipped configurations, and which of them a command uses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_biaskd.errors import UserError

_PACKAGE = Path(__file__).parents[1]
CONFIGS = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())
"""The shipped YAML files: inside an installed package, next to it in a checkout."""
QUICKSTART = CONFIGS / "quickstart.yaml"


def with_config(arguments: list[str]) -> list[str]:
    """Finds shipped files by their name in the repository, and puts in a configuration where none is given."""
    if not arguments or arguments[0].startswith("-") or arguments[0] in ("list", "prepare", "words"):
        return arguments
    arguments = [_at_home(argument) for argument in arguments]
    flags = [argument.partition("=")[0] for argument in arguments]
    if arguments[0] != "compare" and not {"-c", "--config", "-h", "--help"}.intersection(flags):
        return [arguments[0], "--config", str(_default_config(arguments)), *arguments[1:]]
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag, inline, value = argument.partition("=")
        if flag in ("-c", "--config") and inline:
            argument = f"{flag}={shipped(value)}"
        found.append(shipped(argument) if before in ("-c", "--config") else argument)
    return found


def config_values(arguments: list[str]) -> list[str]:
    """The values of ``-c`` and ``--config``."""
    flags = ("-c", "--config")
    pairs = [argument.partition("=") for argument in arguments]
    inline = [value for flag, equals, value in pairs if flag in flags and equals]
    return inline + [value for flag, value in pairwise(arguments) if flag in flags]


def _at_home(argument: str) -> str:
    """An argument with the home folder in place of a leading ``~/``, also behind ``--flag=``."""
    flag, equals, value = argument.partition("=")
    if equals and flag.startswith("--"):
        return f"{flag}={expanded(value)}"
    return str(expanded(argument))


def expanded(value: Any) -> Any:
    """A configuration with the home folder in place of ``~/`` at the start of every string in it."""
    if isinstance(value, str):
        return str(Path(value).expanduser()) if value.startswith("~/") else value
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if isinstance(value, Namespace):
        return Namespace(**{key: expanded(item) for key, item in vars(value).items()})  # type: ignore[no-untyped-call]
    if isinstance(value, dict):
        return {key: expanded(item) for key, item in value.items()}
    return value


def _default_config(arguments: list[str]) -> Path:
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, inline = flag.partition("=")
        if name == "--ckpt_path":
            checkpoint = Path(inline or value).expanduser().absolute()
            runs = [folder.parent for folder in checkpoint.parents if folder.name == "checkpoints"]
            found = [run / "config.yaml" for run in runs if (run / "config.yaml").is_file()]
            if checkpoint.is_file() and found:
                return found[0]
            if checkpoint.is_file() or "://" in (inline or value):
                raise UserError(
                    f"the configuration of the run that wrote '{inline or value}' isn't next to it: name it with -c"
                )
    return QUICKSTART


def shipped(value: str) -> str:
    """The path of a file that may be named as in the repository: ``configs/…``."""
    here, there = Path(value), CONFIGS.parent / value
    return str(there) if value.startswith("configs/") and there.is_file() and not here.is_file() else value
