"""A distillation step at ImageNet's size with a warm cache of the teacher, against the student alone and without cache.

    python benchmarks/cached_images.py --root FOLDER      # with FOLDER/train and FOLDER/val, a folder per class

Each contender is a Trainer.fit as a user has it, of a few steps; they take turns. A step is timed from the end of the
input to the end of the optimizer's step, in seconds of this process's CPU time if there is no GPU, so that other work
of the machine counts less. What the input costs is measured by the workers and not part of a step.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from timing import save, synchronize, table
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34, resnet50

from lightning_biaskd import KD, ClassificationModule, DistillationModule, TeacherCache
from lightning_biaskd.data import ImageNetDataModule
from lightning_biaskd.models import MobileNetV1
from lightning_biaskd.training.fill_cache import fill_cache
from lightning_biaskd.training.passes import QUIET

PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "ResNet-34 → ResNet-18": (resnet34, resnet18),
    "ResNet-50 → MobileNetV1": (resnet50, MobileNetV1),
}
VIEWS, TOPK = 2, 10  # how many views a cache has makes no difference to a step


class Some(ImageNetDataModule):
    """Two batches of images, and ImageNet's number of classes."""

    def datasets(self) -> tuple[Any, Any, Any]:
        sets = super().datasets()
        self.num_classes, self.class_names = 1000, None
        return sets

    def split(self, size: int) -> tuple[Tensor, Tensor]:
        self.num_samples = size
        return torch.arange(2 * self.batch_size), torch.arange(0)


def clock() -> float:
    """Seconds, of the CPU if nothing runs elsewhere."""
    synchronize()
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


class Timed(Callback):
    """Times each step from its input on, and what reading the teacher's outputs takes of it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.reads: list[float] = []
        self.start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, DistillationModule):
            return
        outputs_of = pl_module.teacher_outputs_of

        def timed(batch: Any) -> Any:
            start = clock()
            outputs = outputs_of(batch)
            self.reads.append(clock() - start)
            return outputs

        pl_module.teacher_outputs_of = timed  # type: ignore[method-assign]

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = clock()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(clock() - self.start)


def measured(pair: str, root: str, folder: str, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step of each contender, and of the teacher's part."""
    build_teacher, build_student = PAIRS[pair]
    data = Some(root, args.batch_size, num_workers=args.workers, views=VIEWS)
    torch.manual_seed(0)
    teacher, cache = build_teacher().eval(), TeacherCache(folder, topk=TOPK)

    def distil(**kwargs: Any) -> DistillationModule:
        return DistillationModule(build_student(), teacher, KD(1.0), **kwargs)

    quiet = {**QUIET, "devices": 1, "enable_progress_bar": False, "precision": args.precision}
    fill_cache(distil(teacher_cache=cache), data, Trainer(**quiet))
    contenders: dict[str, Callable[[], LightningModule]] = {
        "student": lambda: ClassificationModule(build_student()),
        "cached": lambda: distil(teacher_cache=cache),
        "uncached": distil,
    }
    steps: dict[str, list[float]] = {name: [] for name in contenders}
    reads: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, build in contenders.items():
            timed = Timed()
            Trainer(**quiet, callbacks=[timed], max_steps=args.steps + 1).fit(build(), data)
            steps[name] += timed.steps[1:]
            reads[name] += timed.reads[1:]
    found = {name: statistics.median(taken) for name, taken in steps.items()}
    return found | {"read": statistics.median(reads["cached"]), "teacher": statistics.median(reads["uncached"])}


def run() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="class folders")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--precision", default="32-true")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    seed_everything(0, verbose=False)
    rows, values = [], {}
    for pair in PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            times = values[pair] = measured(pair, args.root, folder, args)
        student = times["student"]
        rows.append(
            [
                pair,
                *(f"{1000 * times[name]:.0f}" for name in ("student", "cached", "uncached")),
                f"{times['cached'] / student:.3f}",
                f"{1000 * times['read']:.1f}",
                f"{times['uncached'] / times['cached']:.2f}",
            ]
        )
    head = [f"batches of {args.batch_size}, 224x224", "student alone [ms]", "warm cache [ms]", "no cache [ms]"]
    head += ["warm cache / student", "of it reading [ms]", "no cache / warm cache"]
    options = "".join(f" --{name} {getattr(args, name)}" for name in ("batch_size", "precision"))
    save("cached_images", f"python benchmarks/cached_images.py{options} --root FOLDER", values, table(head, rows))


if __name__ == "__main__":
    run()
