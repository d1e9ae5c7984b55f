"""The ``biaskd`` command, and the parts of it that other command lines build on."""

from lightning_biaskd.command_line.parser import BiasKDCLI
from lightning_biaskd.command_line.run import run

__all__ = ["BiasKDCLI", "run"]
