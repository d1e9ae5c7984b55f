"""A distillation step on two processes, and its parts alone: teacher, student, input, all-reduce by gloo.

Each rank trains as a user would, by Trainer.fit on class folders. Between two steps, each part is done alone, so that
what else the machine does hits all alike. Seconds are those of the process's CPU time: on a machine with other work,
elapsed time would measure that. A process that waits for the other one counts nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from cached_images import Some
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torchvision.models import resnet18, resnet34

from lightning_biaskd import KD, DistillationModule
from lightning_biaskd.training.passes import QUIET

PROCESSES = 2


class Parts(Callback):
    """Times each step of a fit, with its input, and each part alone between the steps."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.times: dict[str, list[float]] = {}
        self.parts: dict[str, Callable[[], Any]] = {}
        self.start = 0.0

    def timed(self, name: str, work: Callable[[], Any]) -> None:
        """Adds a time."""
        start = time.process_time()
        work()
        self.times.setdefault(name, []).append(time.process_time() - start)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        image = torch.randn(self.batch_size, 3, 224, 224).to(memory_format=torch.channels_last)
        target = torch.zeros(self.batch_size, dtype=torch.int64)
        student = copy.deepcopy(pl_module.student).train()
        optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        gradients = torch.zeros(sum(parameter.numel() for parameter in student.parameters()))

        def train() -> None:
            optimizer.zero_grad()
            F.cross_entropy(student(image), target).backward()
            optimizer.step()

        self.parts = {
            "teacher": lambda: pl_module.teacher(image),
            "student": train,
            "input": lambda: [data.train_set[item] for item in range(self.batch_size)],
            "all-reduce": lambda: dist.all_reduce(gradients),
        }
        self.start = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.setdefault("step", []).append(time.process_time() - self.start)
        for name, work in self.parts.items():
            self.timed(name, work)
        self.start = time.process_time()


def measure(root: str, batch_size: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step of ResNet-34 → ResNet-18 and of its parts, the sum of these, and the error."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "times.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(PROCESSES)]
        options = ["--root", root, "--batch_size", str(batch_size), "--rounds", str(rounds), "--output", str(place)]
        subprocess.run([*command, __file__, *options], check=True)
        times: dict[str, list[float]] = json.loads(place.read_text())
    found = {name: statistics.median(taken[2:]) for name, taken in times.items()}
    found["predicted"] = sum(seconds for name, seconds in found.items() if name != "step")
    return found | {"error": found["predicted"] / found["step"] - 1, "batch_size": batch_size, "rounds": rounds}


def run() -> None:
    """One rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    data = Some(args.root, args.batch_size, num_workers=0)
    module = DistillationModule(resnet18(), resnet34(), KD(1.0), None)
    parts = Parts(args.batch_size)
    quiet = {**QUIET, "accelerator": "cpu", "devices": PROCESSES, "strategy": "ddp", "enable_progress_bar": False}
    trainer = Trainer(**quiet, callbacks=[parts], max_steps=args.rounds + 2)
    trainer.fit(module, data)
    if trainer.is_global_zero:
        args.output.write_text(json.dumps(parts.times))


if __name__ == "__main__":
    run()
