"""What a step of ours costs over the same computation in a bare Trainer: schedules, metrics and logging.

    python benchmarks/overhead.py

The networks are linear layers, so that the framework is most of the step.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from timing import save, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_biaskd import KD, BiasStrategy, DistillationModule, FrozenTeacher, Outputs
from lightning_biaskd.callbacks import BiasMonitor

STEPS, BATCH, CLASSES = 400, 64, 100


class Bare(LightningModule):
    """The same losses, and nothing else."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, FrozenTeacher(teacher)
        self.distiller, self.bias = KD(), BiasStrategy.paper("swap")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, target = batch
        logits = self.student(image)
        loss = self.bias(self.distiller, Outputs(logits), self.teacher(image), target).total
        return 0.5 * F.cross_entropy(logits, target) + 0.5 * loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


class Logged(Bare):
    """The same, with a ``self.log`` for each of seven values in every step, as is usual."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for name in ("loss", "ce", "kd", "right", "rectified", "wrong_rate", "acc1"):
            self.log(name, loss.detach(), on_step=False, on_epoch=True)
        return loss


class Steps(Callback):
    """The time from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.mark = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.times.append(now - self.mark)
        self.mark = now


def step_time(build: Any, callbacks: list[Callback], **kwargs: Any) -> float:
    """Median of one epoch."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)) for _ in range(2)]
    data = TensorDataset(torch.randn(STEPS * BATCH, 1, 8, 8), torch.randint(CLASSES, (STEPS * BATCH,)))
    steps = Steps()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[*callbacks, steps],
        **kwargs,
    )
    trainer.fit(build(*nets), DataLoader(data, BATCH))
    return statistics.median(steps.times[50:])


def run() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for name, build, callbacks, kwargs in (
                ("the same losses, bare", Bare, [], {"logger": False}),
                ("seven values by self.log in every step", Logged, [], {"logger": False}),
                ("DistillationModule", _module, [], {"logger": CSVLogger(folder), "log_every_n_steps": 50}),
                ("DistillationModule with BiasMonitor", _module, [BiasMonitor()], {"logger": CSVLogger(folder)}),
            ):
                times.setdefault(name, []).append(step_time(build, callbacks, **kwargs))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    base = medians["the same losses, bare"]
    rows = [[name, f"{1e3 * taken:.2f}", f"{1e3 * (taken - base):+.2f}"] for name, taken in medians.items()]
    head = ["", "a step [ms]", "over the first [ms]"]
    save("overhead", "python benchmarks/overhead.py", {"seconds": medians}, table(head, rows))


def _module(student: nn.Module, teacher: nn.Module) -> DistillationModule:
    return DistillationModule(student, teacher, KD(), BiasStrategy.paper("swap"))


if __name__ == "__main__":
    run()
