"""Stops runs at random moments, lets them go on, and compares them, bit by bit, with a run that was left alone.

    python benchmarks/kill_and_resume.py --trials 40

Each trial draws a shape of run (accumulated batches, checkpoints by step, a bound in steps, averaged weights, a cache
of the teacher, one or two processes), one or two stops (in a step, before, in and after a validation, at the end of an
epoch, while a checkpoint is written), and SIGKILL or SIGTERM. It ends equal if its last checkpoint holds the same bits
and every epoch's validation and scheduler step took place.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from timing import save, table

from lightning_biaskd import EMA, KD, DistillationModule, DynamicWeights
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.distillers import CRD, WeightedSum
from lightning_biaskd.models import CIFARResNet, resnet8
from lightning_biaskd.training.checkpoint import newest

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from bitwise import differing

EPOCHS, BATCHES = 4, 7
HOOKS = ("on_train_batch_end", "on_validation_start", "on_validation_batch_end", "on_validation_end", "writing")
HOOKS += ("on_train_epoch_end", "on_train_epoch_start", "on_train_batch_start")


class Stop(Callback):
    """Sends a signal to the processes of this run when a hook is called for the n-th time."""

    def __init__(self, hook: str, count: int, how: int) -> None:
        self.left, self.how = count, how
        if hook == "writing":
            self.write, torch.save = torch.save, self.cut_off
        else:
            setattr(self, hook, self.tick)

    def tick(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.left -= 1
            if self.left == 0 and trainer.is_global_zero:
                self.send()

    def cut_off(self, content: Any, file: Any) -> None:
        self.left -= 1
        self.write(content, file)
        if self.left == 0:
            file.truncate(file.tell() // 2)
            self.send()

    def send(self) -> None:
        if self.how == signal.SIGTERM:
            os.kill(os.getpid(), self.how)
        else:
            os.killpg(0, self.how)  # all processes of this run


class Validations(Callback):
    """Notes the accuracy of each validation in a file."""

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            with Path("validations").open("a") as file:
                file.write(json.dumps([trainer.current_epoch, float(trainer.callback_metrics["val/acc1"])]) + "\n")


def fit(shape: dict[str, Any], stop: list[Any] | None) -> None:
    """One run, or the rest of one, in the current folder."""
    seed_everything(0, verbose=False)
    student = CIFARResNet(depth=8, num_classes=10, in_channels=1, widths=(4, 4, 8, 16))
    distiller = KD() if shape["cache"] else WeightedSum([(CRD(negatives=16), 0.8), (KD(), 1.0)])
    module = DistillationModule(
        student,
        resnet8(num_classes=10, in_channels=1),
        distiller,
        teacher_weights="builtin:digits_resnet8",
        teacher_cache="cache" if shape["cache"] else None,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS),
    )
    callbacks: list[Callback] = [EMA(0.9)] if shape["ema"] else []
    callbacks += [Validations(), DynamicWeights(), *([Stop(*stop)] if stop else [])]
    keep: dict[str, Any] = {"dirpath": "checkpoints", "enable_version_counter": False}
    callbacks += [ModelCheckpoint(filename="best", monitor="val/acc1", mode="max", **keep)]
    if shape["step"]:
        callbacks += [
            ModelCheckpoint(filename="step", every_n_train_steps=shape["step"], save_on_exception=True, **keep)
        ]
    callbacks += [ModelCheckpoint(filename="epoch", **keep)]
    trainer = Trainer(
        **({"max_steps": shape["max_steps"], "max_epochs": -1} if shape["max_steps"] else {"max_epochs": EPOCHS}),
        accelerator="cpu",
        devices=shape["ranks"],
        strategy="ddp" if shape["ranks"] > 1 else "auto",
        accumulate_grad_batches=shape["accumulate"],
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DigitsDataModule(batch_size=32 // shape["ranks"], train_size=32 * BATCHES)
    trainer.fit(module, data, ckpt_path=os.environ.get("START"))


def start(folder: Path, shape: dict[str, Any], stop: list[Any] | None = None) -> int:
    """Runs it in a process of its own; the exit status."""
    folder.mkdir(exist_ok=True)
    found = newest(folder.glob("checkpoints/*.ckpt"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"START": str(found)} if found else {})}
    program = [sys.executable, str(Path(__file__).absolute()), "--run", json.dumps([shape, stop])]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(program, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        return process.wait(timeout=300)


def ended_with(folder: Path) -> tuple[dict[str, Any], dict[int, float]]:
    """The last epoch's checkpoint, and the validations by epoch."""
    lines = [json.loads(line) for line in (folder / "validations").read_text().splitlines()]
    return torch.load(folder / "checkpoints/epoch.ckpt", weights_only=True), dict(lines)


def drawn(chance: random.Random) -> tuple[dict[str, Any], list[list[Any]]]:
    """A shape of run and its stops."""
    shape: dict[str, Any] = {
        "accumulate": chance.choice([1, 1, 2, 3]),
        "step": chance.choice([0, 1, 2]),
        "ema": chance.random() < 0.5,
        "cache": chance.random() < 0.3,
        "ranks": 2 if chance.random() < 0.2 else 1,
        "max_steps": 0,
    }
    per_epoch = -(-BATCHES // shape["accumulate"])
    if chance.random() < 0.25:
        shape["max_steps"] = per_epoch * EPOCHS
    stops = []
    for _ in range(chance.choice([1, 2])):
        hook = chance.choice(HOOKS)
        most = BATCHES * 2 if "train_batch" in hook or hook == "writing" else 2
        how = signal.SIGTERM if chance.random() < 0.3 and hook != "writing" else signal.SIGKILL
        stops.append([hook, chance.randint(1, most), int(how)])
    return shape, stops


def run() -> None:
    """Stops, resumes, compares and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        fit(*json.loads(args.run))
        return
    chance = random.Random(args.seed)
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for trial in range(args.trials):
            shape, stops = drawn(chance)
            whole = Path(place) / "_".join(f"{key}{int(value)}" for key, value in shape.items())
            if not (whole / "validations").is_file() and start(whole, shape):
                raise SystemExit((whole / "log").read_text()[-2000:])
            cut = Path(place) / f"trial{trial}"
            codes = [start(cut, shape, stop) for stop in stops] + [start(cut, shape)]
            (expected, validated), (found, seen) = ended_with(whole), ended_with(cut)
            different = differing(expected, found) + ["validations"] * (validated != seen)
            told = ", ".join(f"{hook} {count} {signal.Signals(how).name}" for hook, count, how in stops)
            kind = ", ".join(f"{key} {value}" for key, value in shape.items() if value)
            rows.append([trial, kind, told, str(codes), ", ".join(different) or "none"])
            print(*rows[-1], sep=" | ", flush=True)
            shutil.rmtree(cut)
    equal = sum(row[-1] == "none" for row in rows)
    head = ["trial", "run", "stops: hook, how often it was called, signal", "exit statuses", "parts that differ"]
    text = f"{equal} of {len(rows)} end bit-equal to the run that was not stopped, with every validation.\n\n"
    command = f"python benchmarks/kill_and_resume.py --trials {args.trials} --seed {args.seed}"
    save("kill_and_resume", command, {"equal": equal, "trials": rows}, text + table(head, rows))


if __name__ == "__main__":
    run()
