"""The ``biaskd`` command: LightningCLI with our classes at hand, shipped configurations, and one-line errors."""

from __future__ import annotations

import re
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

import lightning_biaskd
import lightning_biaskd.data  # short class names in YAML work for what is imported
from lightning_biaskd.audit.measure import QUIET
from lightning_biaskd.callbacks import DistillationProgressBar, ResultTable
from lightning_biaskd.callbacks.history import run_folder
from lightning_biaskd.checkpoint import DurableCheckpointIO, newest
from lightning_biaskd.commands import Commands
from lightning_biaskd.errors import UserError

_PACKAGE = Path(__file__).parent
CONFIGS = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())
"""The shipped YAML files: inside an installed package, beside it in a checkout."""
QUICKSTART = CONFIGS / "quickstart.yaml"


class BriefParser(LightningArgumentParser):
    """Says what is wrong in one line, and doesn't list every ``nn.Module`` there is as a possible network."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        help_text: str = super().format_help(*args, **kwargs)
        return re.sub(r",\s+known\s+subclasses:\s+torch\.nn\.Module,[^)]*\)", ")", help_text)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _fail(f"{message} (see --help)", status=2)


class SaveConfigBesideCheckpoints(SaveConfigCallback):
    """Saves ``config.yaml`` in the run's folder, whatever the logger; Lightning's own knows no folder of some."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / self.config_filename, skip_none=False, overwrite=True)


class BiasKDCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` for our modules and users' own of any kind, and our commands."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        ours = {name: {"model", "datamodule"} for name in vars(Commands) if not name.startswith("_")}
        return {**LightningCLI.subcommands(), **ours}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in vars(Commands):
            for name in {"ckpt_path", "weights_only"} - set(self._subcommand_method_arguments[subcommand]):
                parser.add_argument(f"--{name}", help=SUPPRESS)  # of fit, whose YAML is read
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=False,
            help="After fit, test the last weights and print student beside teacher.",
        )
        parser.add_argument(
            "--float32_matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="How exact matrix products in float32 must be on a GPU: high is TF32.",
        )

    def before_instantiate_classes(self) -> None:
        torch.set_float32_matmul_precision(self._get(self.config, "float32_matmul_precision"))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Lightning would warn of explicit arguments, and ours always are
        self.config = parser.parse_args(cast("list[str]", args))

    def _parse_ckpt_path(self) -> None:
        """Keeps the configuration that was asked for: Lightning 2.6 would overrule it by the checkpoint's."""

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # of a constructor, under jsonargparse's account of where it was called
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise UserError(str(cause)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.subcommand in ("audit", "cache"):  # they leave no trace of a run
            kwargs, self.save_config_callback = {**QUIET, "callbacks": [], **kwargs}, None
        trainer = super().instantiate_trainer(**kwargs)
        # ours in place of Lightning's defaults, where nothing else is asked for
        if type(trainer.progress_bar_callback) is RichProgressBar:
            bar = trainer.callbacks.index(trainer.progress_bar_callback)  # type: ignore[attr-defined]
            trainer.callbacks[bar] = DistillationProgressBar()  # type: ignore[attr-defined]
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DurableCheckpointIO()  # for users' own modules too
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("ckpt_path") == "last":
            runs = run_folder(self.trainer).parent
            kwargs["ckpt_path"] = newest(runs.glob("*/checkpoints/*.ckpt"))
            if kwargs["ckpt_path"] is None and subcommand != "fit":
                raise UserError(f"there is no checkpoint in '{runs}' yet")
            rank_zero_info(f"going on from '{kwargs['ckpt_path']}'" if kwargs["ckpt_path"] else "beginning anew")
        return kwargs

    def after_fit(self) -> None:
        if self.config.fit.test_after_fit and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Without ``-c`` the configuration is that of the run that ``--ckpt_path`` belongs to, or else the quickstart's. A
    shipped file may be named from anywhere: ``-c configs/data/cifar100.yaml``. ``--ckpt_path last`` is the newest whole
    checkpoint of all runs of this name; a fit that finds none begins anew.

    Args:
        args: the arguments; ``None`` for those of the process.
    """
    arguments = _with_config(list(sys.argv[1:] if args is None else args))
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # so that `biaskd`, like `python -m`, finds classes in files of one's own
    try:
        if arguments[:1] == ["compare"]:
            from lightning_biaskd.compare.command import run  # it builds on this module

            sys.exit(run(arguments[1:]))
        command_line(BiasKDCLI, arguments)
    except (UserError, MisconfigurationException, FileNotFoundError, IsADirectoryError) as error:
        _fail(str(error), status=1)
    except RuntimeError as error:
        if not (told := re.search(r"expected input.* channels, but got \d+ channels", str(error))):
            raise
        _fail(
            f"{told[0]}: build the networks with the data's in_channels, or say by teacher_input or student_input "
            "what they were trained to see",
            status=1,
        )


def command_line(cli_class: type[BiasKDCLI], arguments: list[str], **kwargs: Any) -> BiasKDCLI:
    """Parses arguments, builds what they describe, and runs the command that they begin with.

    Args:
        cli_class: :class:`BiasKDCLI` or a subclass.
        arguments: as on the command line.
        **kwargs: further arguments of ``LightningCLI``; ``run=False`` builds and runs nothing.
    """
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")  # Lightning 2.6 on newer torch
    settings: dict[str, Any] = {
        "save_config_callback": SaveConfigBesideCheckpoints,
        "trainer_class": Commands,
        "trainer_defaults": {"callbacks": [ResultTable()]},
        "parser_class": BriefParser,
        "parser_kwargs": {
            "prog": "biaskd",
            "description": lightning_biaskd.__doc__,
            "version": lightning_biaskd.__version__,
            "epilog": "Beside these: biaskd compare -c MATRIX.yaml runs a matrix of trainings and reports on it.",
        },
    }
    return cli_class(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,  # ours are arguments of the module
        seed_everything_default=0,
        args=arguments,
        **{**settings, **kwargs},
    )


def _with_config(arguments: list[str]) -> list[str]:
    """Finds shipped files by their name in the repository, and puts in a configuration where none is given."""
    if not arguments or arguments[0].startswith("-"):
        return arguments
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


def _default_config(arguments: list[str]) -> Path:
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, inline = flag.partition("=")
        if name == "--ckpt_path":
            checkpoint = Path(inline or value).absolute()
            run = checkpoint.parent.parent / "config.yaml"
            if checkpoint.is_file() and run.is_file():
                return run
    return QUICKSTART


def shipped(value: str) -> str:
    """The path of a file that may be named as in the repository: ``configs/…``."""
    here, there = Path(value), CONFIGS.parent / value
    return str(there) if value.startswith("configs/") and there.is_file() and not here.is_file() else value


def _fail(message: str, status: int) -> NoReturn:
    print("biaskd: error:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)
