"""The ``biaskd`` command, also as ``python -m lightning_biaskd``."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_biaskd.command_line.run import run


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Without ``-c`` the configuration is that of the run that ``--ckpt_path`` belongs to, or else the quickstart's. A
    shipped file may be named from anywhere: ``-c configs/data/cifar100.yaml``. ``--ckpt_path last`` is the newest whole
    checkpoint of all runs of this name; a fit that finds none starts a new run.

    Args:
        args: the arguments; ``None`` for those of the process.
    """
    run(args=args, further={"compare": _compare})


def _compare(arguments: list[str]) -> int:
    from lightning_biaskd.compare.command import run as compare  # only this command needs it

    return compare(arguments)


if __name__ == "__main__":
    main()
