"""The ``biaskd`` command: LightningCLI with our classes at hand, shipped configurations, and one-line errors."""

from __future__ import annotations

import warnings
from argparse import SUPPRESS
from typing import Any, Literal, cast

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

import lightning_biaskd
import lightning_biaskd.data  # short class names in YAML work for what is imported
import lightning_biaskd.training.detection_distillation
from lightning_biaskd.callbacks import DistillationProgressBar, DistillationSummary, ResultTable
from lightning_biaskd.command_line.arguments import BriefParser
from lightning_biaskd.command_line.commands import Commands
from lightning_biaskd.command_line.evaluation import EVALUATIONS, add_output, finish, prepare
from lightning_biaskd.command_line.retired import read_files_of_version_0_1
from lightning_biaskd.command_line.shipped import expanded
from lightning_biaskd.errors import UserError
from lightning_biaskd.training.callback_copies import without_duplicates
from lightning_biaskd.training.checkpoint import make_durable
from lightning_biaskd.training.last_checkpoint import last_checkpoint
from lightning_biaskd.training.passes import QUIET
from lightning_biaskd.training.run_folder import link_last, run_folder, write_to

_CKPT_PATH = (
    "A checkpoint's path, or last: the checkpoint that is furthest in training among all runs of this name, searched "
    "where their ModelCheckpoint callbacks write. If there is none, fit starts a new run and any other command fails."
)


class SaveConfigNextToCheckpoints(SaveConfigCallback):
    """Saves ``config.yaml`` in the run's folder, whatever the logger; Lightning's own knows no folder of some."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        write_to(run_folder(trainer), self.config_filename, self.parser.dump(self.config, skip_none=False).encode())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            link_last(run_folder(trainer))


class BiasKDCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` for our modules and users' own of any kind, and our commands."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = kwargs.get("args")
        self._named = given[0] if isinstance(given, list) and given else None
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        ours = {name: {"model", "datamodule"} for name in vars(Commands) if not name.startswith("_")}
        return {**LightningCLI.subcommands(), **ours}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self._named != subcommand and self._named in self.subcommands():
            return self.init_parser(**kwargs)  # its options aren't asked for, and take long to collect
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in vars(Commands):
            for name in {"ckpt_path", "weights_only"} - set(self._subcommand_method_arguments[subcommand]):
                parser.add_argument(f"--{name}", help=SUPPRESS)  # of fit, whose YAML is read
        if subcommand == "predict":
            add_output(parser)
        for action in parser._actions:
            if action.dest == "ckpt_path" and action.help != SUPPRESS:
                action.help = _CKPT_PATH
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=False,
            help="After fit, test the last weights and print student and teacher.",
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
        self.config = expanded(parser.parse_args(cast("list[str]", args)))

    def _parse_ckpt_path(self) -> None:
        """Keeps the configuration that was asked for: Lightning 2.6 would overrule it by the checkpoint's."""

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except Exception as error:  # of a constructor, under jsonargparse's account of where it was called
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, ValueError | ImportError):
                raise UserError(str(cause)) from error
            raise cause from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.subcommand in ("audit", "cache"):  # they leave no trace of a run
            kwargs, self.save_config_callback = {**QUIET, "callbacks": [], **kwargs}, None
        if self.subcommand in EVALUATIONS:
            self.save_config_callback = None
        trainer = super().instantiate_trainer(**kwargs)
        # ours in place of Lightning's defaults, where nothing else is asked for
        if type(trainer.progress_bar_callback) is RichProgressBar:
            bar = trainer.callbacks.index(trainer.progress_bar_callback)  # type: ignore[attr-defined]
            trainer.callbacks[bar] = DistillationProgressBar()  # type: ignore[attr-defined]
        for place, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
            if type(callback) in (ModelSummary, RichModelSummary):
                trainer.callbacks[place] = DistillationSummary(callback._max_depth)  # type: ignore[attr-defined]
        make_durable(trainer.strategy)  # for users' own modules too
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config.get("callbacks") or []
        config["callbacks"] = without_duplicates(given if isinstance(given, list) else [given])
        return super()._instantiate_trainer(config, callbacks)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("ckpt_path") == "last":
            found = last_checkpoint(self.trainer, may_start_new=subcommand == "fit")
            kwargs["ckpt_path"] = None if found is None else str(found)
        if kwargs.get("ckpt_path") == "best":
            raise UserError(
                "which one was best is not known to a new process: --ckpt_path runs/…/checkpoints/best.ckpt"
            )
        return prepare(self.trainer, subcommand, kwargs, self._get(self.config, "output"))

    def after_validate(self) -> None:
        finish(self.trainer, str(self.subcommand), self._get(self.config, "output"))

    after_test = after_predict = after_validate

    def after_fit(self) -> None:
        if self.config.fit.test_after_fit and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)


def command_line(cli_class: type[BiasKDCLI], arguments: list[str], **kwargs: Any) -> BiasKDCLI:
    """Parses arguments, builds what they describe, and runs the command that they begin with.

    Args:
        cli_class: :class:`BiasKDCLI` or a subclass.
        arguments: as on the command line.
        **kwargs: further arguments of ``LightningCLI``; ``run=False`` builds and runs nothing.
    """
    read_files_of_version_0_1()
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")  # Lightning 2.6 on newer torch
    warnings.filterwarnings("ignore", r"\s*Unable to serialize instance [\w.:]+\s*$")  # see BriefParser.dump
    settings: dict[str, Any] = {
        "save_config_callback": SaveConfigNextToCheckpoints,
        "trainer_class": Commands,
        "trainer_defaults": {"callbacks": [ResultTable()]},
        "parser_class": BriefParser,
        "parser_kwargs": {
            "prog": "biaskd",
            "description": lightning_biaskd.__doc__,
            "version": lightning_biaskd.__version__,
            "epilog": "Four more commands: biaskd compare -c MATRIX.yaml runs a matrix of trainings and reports on "
            "it; biaskd prepare FOLDER OUTPUT stores images in the size that training needs; biaskd list prints the "
            "names of methods, networks, data, callbacks and configuration files; biaskd words prints every word, for "
            "the completion of the shell.",
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
