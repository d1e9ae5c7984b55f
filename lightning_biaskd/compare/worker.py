"""One run, in a process of its own."""

from __future__ import annotations

import csv
import gc
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, NoReturn

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger

import lightning_biaskd
from lightning_biaskd.callbacks import History
from lightning_biaskd.command_line.arguments import BriefParser
from lightning_biaskd.command_line.parser import BiasKDCLI, command_line
from lightning_biaskd.command_line.shipped import shipped
from lightning_biaskd.compare.folder import BusyError, alone_in, result_in, write_result
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.weights import read


@dataclass(frozen=True)
class Task:
    """What a process is told to do.

    Attributes:
        words: of ``biaskd fit``.
        folder: of the run.
        about: goes into the result as it is.
        threads: of the CPU.
        device: which GPU it sees; ``None`` for none in particular.
    """

    words: list[str]
    folder: Path
    about: dict[str, Any]
    threads: int
    device: str | None


class StrictParser(BriefParser):
    """Raises what is wrong."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(message)


class _Parsed(Exception):  # noqa: N818  (no error)
    pass


class ParseOnly(BiasKDCLI):
    """Parses and goes no further."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        raise _Parsed


def check(words: list[str]) -> None:
    """Parses the configuration of a run.

    Raises:
        UserError: what is wrong with it.
    """
    with suppress(_Parsed):
        command_line(ParseOnly, _found(words), parser_class=StrictParser, run=False)


def work(task: Task, channel: connection.Connection) -> None:
    """The whole life of a run's process: trains, tests, writes the result; tells how it goes over the channel.

    Sends ``("share", done)`` after each epoch, and last ``("done", None)``, ``("failed", line)``, or ``("busy", None)``
    where another process is at work on the run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and decides
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    task.folder.mkdir(parents=True, exist_ok=True)
    with (task.folder / "run.log").open("a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        if task.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = task.device
        torch.set_num_threads(task.threads)
        try:
            with alone_in(task.folder):
                if result_in(task.folder) is None:  # another process may have been faster
                    execute(task, lambda share: channel.send(("share", share)))
            channel.send(("done", None))
        except BusyError:
            channel.send(("busy", None))
        except BaseException as error:
            traceback.print_exc()
            channel.send(("failed", _line(error)))
        finally:
            sys.stdout.flush()


def execute(task: Task, progress: Callable[[float], None]) -> None:
    """Trains from the last checkpoint, if there is one; tests the last epoch and the best; writes the result.

    Raises:
        UserError: a configuration that doesn't parse, or asks for several devices.
    """
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    quiet += [f"--trainer.default_root_dir={task.folder}"]
    cli = command_line(BiasKDCLI, [*_found(task.words), *quiet], parser_class=StrictParser, run=False)
    trainer, module, data = cli.trainer, cli.model, cli.datamodule
    if trainer.world_size > 1:
        raise UserError("a run of a matrix has one device: leave trainer.devices out, and give compare several jobs")
    if trainer.limit_test_batches == 0:
        raise UserError("a run of a matrix ends with a test: leave trainer.limit_test_batches out, or above 0")
    history, clock = History(), Clock(progress)
    name = getattr(data, "score", "acc1")
    best = ModelCheckpoint(
        task.folder / "checkpoints", "best", monitor=f"val/{name}", mode="max", enable_version_counter=False
    )
    last = ModelCheckpoint(task.folder / "checkpoints", "last", enable_version_counter=False)
    kept = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if not isinstance(callback, ModelCheckpoint | ProgressBar)
    ]
    trainer.callbacks = [*kept, history, clock, best, last]  # type: ignore[attr-defined]
    start = resumable(task.folder / "checkpoints" / "last.ckpt")
    others = [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]
    trainer.loggers = [csv_logger(task.folder, start), *others]
    trainer.fit(module, datamodule=data, ckpt_path=start)
    if trainer.interrupted:
        raise UserError("interrupted")
    trained = {
        "score": name,
        "epochs": len(history.epochs),
        "validation": dict(zip(*history.curve(f"val/{name}"), strict=True)),
        "teacher_validation": next(reversed(history.curve(f"val/teacher_{name}")[1]), None),
        "wrong_rate": next(reversed(history.curve("bias/wrong_rate")[1]), None),
        "seconds": clock.seconds,
        "resumed": clock.resumed,
    }  # before a checkpoint is tested, which brings the state of its callbacks
    steps = trainer.global_step
    tested = {"last": trainer.test(module, datamodule=data, verbose=False)[0]}
    path = task.folder / "checkpoints" / "best.ckpt"
    if path.is_file() and read(path)["global_step"] == steps:
        tested["best"] = tested["last"]
    elif path.is_file():
        tested["best"] = trainer.test(module, datamodule=data, ckpt_path=path, verbose=False)[0]
    write_result(
        task.folder,
        {
            **task.about,
            **{which: {key.removeprefix("test/"): x for key, x in found.items()} for which, found in tested.items()},
            **trained,
            "device": _device(trainer),
            "versions": {
                "lightning_biaskd": lightning_biaskd.__version__,
                "torch": torch.__version__,
                "lightning": lightning.__version__,
                "python": platform.python_version(),
            },
        },
    )


class Clock(Callback):
    """Measures the time of the training, over resumptions, and tells the share that is done."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self.tell = tell
        self.seconds = 0.0
        self.resumed = False
        self._since = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add()
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            self.tell((trainer.current_epoch + 1) / trainer.max_epochs)
        elif trainer.max_steps > 0:
            self.tell(trainer.global_step / trainer.max_steps)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add()

    def _add(self) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.resumed = state_dict["seconds"], True


def resumable(path: Path) -> Path | None:
    """The checkpoint to go on from; ``None`` if there is none, or it is damaged, so that the run starts over."""
    try:
        read(path)
    except FileNotFoundError:
        return None
    except Exception as error:  # a truncated file raises many kinds
        print(f"{path} is damaged ({error}): the run starts from its beginning", file=sys.stderr)
        return None
    finally:
        gc.collect()
    return path


def csv_logger(folder: Path, start: Path | None) -> CSVLogger:
    """Lightning's, but the rows up to the checkpoint to go on from stay."""
    place, rows = folder / "metrics.csv", []
    if start is not None and place.is_file():
        done = read(start)["global_step"]
        with place.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if (row["step"] or "").isdigit() and int(row["step"]) < done]
    logger = CSVLogger(folder, name="", version="")
    logger.experiment.metrics.extend(rows)  # the logger has deleted the file
    logger.save()
    return logger


def _end_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _found(words: list[str]) -> list[str]:
    return [shipped(word) for word in words]


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()} ({platform.machine()}, {threads} thread{'s' * (threads > 1)})"


def _line(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if isinstance(cause, UserError) else f"{type(cause).__name__}: {text}"
