"""Running a command line, ours or one built on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_biaskd.command_line.complaints import explained, fail
from lightning_biaskd.command_line.config_files import check_configs
from lightning_biaskd.command_line.listing import list_names
from lightning_biaskd.command_line.parser import BiasKDCLI, command_line
from lightning_biaskd.command_line.preparation import prepare_images
from lightning_biaskd.command_line.shipped import with_config
from lightning_biaskd.command_line.words import words


def run(
    cli_class: type[BiasKDCLI] = BiasKDCLI,
    args: Sequence[str] | None = None,
    further: Mapping[str, Callable[[list[str]], int]] | None = None,
    **kwargs: Any,
) -> None:
    """Runs a command line: finds shipped files, adds a configuration if none is given, and prints errors as one line.

    Args:
        cli_class: :class:`~lightning_biaskd.command_line.BiasKDCLI`, or a subclass with arguments of its own.
        args: the arguments; ``None`` for those of the process.
        further: commands that are not the Trainer's, from the arguments after their name to an exit status.
        **kwargs: further arguments of ``LightningCLI``.

    Example:
        >>> class MyCLI(BiasKDCLI):
        ...     def add_arguments_to_parser(self, parser):
        ...         super().add_arguments_to_parser(parser)
        ...         parser.add_argument("--project", default="mine")
        >>> run(MyCLI, ["fit", "--help"])  # doctest: +SKIP
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # so that `biaskd`, like `python -m`, finds classes in the user's own files
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without arrows or umlauts
    try:
        arguments = with_config(arguments)
        check_configs(arguments)
        if arguments[:1] == ["list"]:
            list_names(arguments[1:])
        elif arguments[:1] == ["prepare"]:
            prepare_images(arguments[1:])
        elif arguments[:1] == ["words"]:
            print(*words(cli_class), sep="\n")
        elif arguments and arguments[0] in (further or {}):
            sys.exit((further or {})[arguments[0]](arguments[1:]))
        else:
            command_line(cli_class, arguments, **kwargs)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a command that SIGPIPE ends
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C", status=130)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning's way to end a run that Ctrl-C stopped
            fail("stopped by Ctrl-C", status=130)
        raise
    except Exception as error:
        line = explained(error)
        if line is None:
            raise
        fail(line, status=1)
