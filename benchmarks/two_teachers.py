"""Distils from two teachers that are wrong on different classes, corrects their mean or each, and writes a table.

    python benchmarks/two_teachers.py --seeds 0 1 2 3 4

scikit-learn's digits. Each teacher has seen all training images of five classes, and six images of each other class.
The student sees 250 images of all classes, so that what the teachers know counts.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from lightning_biaskd import KD, BiasStrategy, ClassificationModule, DistillationModule, EnsembleTeacher
from lightning_biaskd.compare.statistics import paired_difference
from lightning_biaskd.compare.table import interval
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.data.in_memory import Split
from lightning_biaskd.models import CIFARResNet, resnet8
from lightning_biaskd.training.schedules import CosineOverRun

FEW = 6
RATE: dict[str, Any] = {
    "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4),
    "lr_scheduler": CosineOverRun,
}
FORMS: dict[str, tuple[str, BiasStrategy | None]] = {
    "plain": ("mean", None),
    "plain, CA-MKD's weights": ("confidence", None),
    "the mean corrected": ("mean", BiasStrategy("swap", trust=None, label_trust=None)),
    "each corrected": ("mean", BiasStrategy("swap", trust=None, label_trust=None, per_teacher=True)),
    "the mean dropped": ("mean", BiasStrategy("drop", trust=None)),
    "each dropped": ("mean", BiasStrategy("drop", trust=None, per_teacher=True)),
}


class HalfOfTheDigits(DigitsDataModule):
    """All training images of five classes, and a few of the others."""

    def __init__(self, known: range) -> None:
        super().__init__(val_split=0)
        self.known = known

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        image, target = super().read(split)
        if split == "test":
            return image, target
        kept = torch.cat([(target == c).nonzero()[: None if c in self.known else FEW] for c in range(10)]).flatten()
        return image[kept], target[kept]


def trained(module: ClassificationModule, data: DigitsDataModule, epochs: int, seed: int) -> dict[str, float]:
    """The module's test metrics after a fit."""
    seed_everything(seed, verbose=False)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", devices=1, limit_val_batches=0, **quiet)
    trainer.fit(module, data)
    (metrics,) = trainer.test(module, data, verbose=False)
    return dict(metrics)


def teachers(seed: int) -> tuple[list[nn.Module], list[float]]:
    """Both networks, and their accuracies in percent."""
    networks: list[nn.Module] = []
    accuracies = []
    for known in (range(5), range(5, 10)):
        seed_everything(seed, verbose=False)
        network = resnet8(num_classes=10, in_channels=1)
        found = trained(ClassificationModule(network, **RATE), HalfOfTheDigits(known), 30, seed)
        networks.append(network)
        accuracies.append(100 * found["test/acc1"])
    return networks, accuracies


def student_accuracy(networks: list[nn.Module], form: str | None, seed: int) -> float:
    """A student's test accuracy in percent; without a form, of the student alone."""
    seed_everything(seed, verbose=False)
    student = CIFARResNet(depth=8, num_classes=10, in_channels=1, widths=(4, 4, 8, 16))
    data = DigitsDataModule(val_split=0, train_size=250)
    if form is None:
        return 100 * trained(ClassificationModule(student, **RATE), data, 60, seed)["test/acc1"]
    weights, bias = FORMS[form]
    teacher = EnsembleTeacher(networks, weights)  # type: ignore[arg-type]
    module = DistillationModule(student, teacher, KD(4.0), bias, **RATE)
    return 100 * trained(module, data, 60, seed)["test/acc1"]


def run() -> None:
    """Trains everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "two_teachers.md")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    of_teachers: list[float] = []
    found: dict[str | None, dict[int, float]] = {form: {} for form in (None, *FORMS)}
    for seed in args.seeds:
        networks, accuracies = teachers(seed)
        of_teachers += accuracies
        for form, by_seed in found.items():
            by_seed[seed] = student_accuracy(networks, form, seed)
            print(f"seed {seed}, {form or 'alone'}: {by_seed[seed]:.2f}", flush=True)
    lines = ["| | top-1 on test images [%] | − the same of the mean [points], 95 % |", "| --- | ---: | ---: |"]
    lines.append(f"| the teachers | {min(of_teachers):.1f} to {max(of_teachers):.1f} | |")
    for form, by_seed in found.items():
        values = list(by_seed.values())
        spread = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        mean = found.get((form or "").replace("each", "the mean"), by_seed)
        difference = "" if by_seed is mean else interval(paired_difference(by_seed, mean))
        lines.append(f"| {'the student alone' if form is None else form} | {spread} | {difference} |")
    command = f"python benchmarks/two_teachers.py --seeds {' '.join(map(str, args.seeds))}"
    head = (
        f"scikit-learn's digits; each teacher knows five classes and has seen {FEW} images of each other; the student "
        f"sees 250 images.\nKD at τ 4, cross-entropy 1 + KD ½, 60 epochs; mean ± standard deviation over "
        f"{len(args.seeds)} seeds.\n\n`{command}`, "
        f"torch {torch.__version__}, lightning {lightning.__version__}, Python "
        f"{platform.python_version()}, threads: {torch.get_num_threads()}.\n\n"
    )
    args.out.write_text(head + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run()
