"""The ``biaskd`` command, also as ``python -m lightning_biaskd``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_biaskd.command_line.parser import BiasKDCLI, command_line, fail
from lightning_biaskd.command_line.shipped import with_config
from lightning_biaskd.errors import UserError


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Without ``-c`` the configuration is that of the run that ``--ckpt_path`` belongs to, or else the quickstart's. A
    shipped file may be named from anywhere: ``-c configs/data/cifar100.yaml``. ``--ckpt_path last`` is the newest whole
    checkpoint of all runs of this name; a fit that finds none begins anew.

    Args:
        args: the arguments; ``None`` for those of the process.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # so that `biaskd`, like `python -m`, finds classes in files of one's own
    try:
        arguments = with_config(arguments)
        if arguments[:1] == ["compare"]:
            from lightning_biaskd.compare.command import run  # it builds on this module

            sys.exit(run(arguments[1:]))
        command_line(BiasKDCLI, arguments)
    except (UserError, MisconfigurationException, FileNotFoundError, IsADirectoryError) as error:
        fail(str(error), status=1)
    except RuntimeError as error:
        if not (told := re.search(r"expected input.* channels, but got \d+ channels", str(error))):
            raise
        fail(
            f"{told[0]}: build the networks with the data's in_channels, or say by teacher_input or student_input "
            "what they were trained to see",
            status=1,
        )


if __name__ == "__main__":
    main()
