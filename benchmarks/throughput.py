"""A distillation step of this library against how others do it, side by side in one run.

    python benchmarks/throughput.py                 # resnet32x4 -> resnet8x4, CIFAR-sized, batch 64, float32
    python benchmarks/throughput.py --pair small    # ResNet-14 -> half-width ResNet-8, Fashion-MNIST-sized, batch 128
    python benchmarks/throughput.py --precision bf16-mixed --compile true

Data are random images of the set's size and shape (the time doesn't depend on what they show); no set is needed. Ours
is Trainer.fit with a DistillationModule, KD and BiasStrategy, as a user has it: logging, schedules and metrics
included. Between its steps the contenders take their turn.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from baselines import PillowImages, batches, released_step, usual_step
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from timing import interleaved, save, seconds, synchronize, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_biaskd import KD, BiasStrategy, DistillationModule, FrozenTeacher, TeacherCache
from lightning_biaskd.data import CIFAR100DataModule, FashionMNISTDataModule, InMemoryDataModule
from lightning_biaskd.data.batch import TensorImages
from lightning_biaskd.models import CIFARResNet, resnet8x4, resnet14, resnet32x4
from lightning_biaskd.randomness.bits import random_bits
from lightning_biaskd.training.fill_cache import fill_cache
from lightning_biaskd.training.passes import QUIET


def random_data(kind: type[InMemoryDataModule], size: int, train: int) -> type[InMemoryDataModule]:
    """A data module of random images."""

    class Random(kind):  # type: ignore[valid-type,misc]
        def read(self, split: str) -> tuple[Tensor, Tensor]:
            count = train if split == "train" else 64
            generator = torch.Generator().manual_seed(0)
            image = torch.randint(256, (count, self.in_channels, size, size), dtype=torch.uint8, generator=generator)
            return image, torch.randint(self.num_classes, (count,), generator=generator)

    return Random


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], type[InMemoryDataModule], int, int]] = {
    "cifar": (resnet32x4, resnet8x4, CIFAR100DataModule, 32, 64),
    "small": (
        lambda: resnet14(10, 1),
        lambda: CIFARResNet(8, 10, 1, (8, 8, 16, 32)),
        FashionMNISTDataModule,
        28,
        128,
    ),
}


class Turns(Callback):
    """Times each of our steps, from the end of the one before to its own, and lets the others take theirs between."""

    def __init__(self, others: dict[str, Callable[[], None]], rounds: int, warmup: int = 3) -> None:
        self.others, self.rounds, self.warmup = others, rounds, warmup
        self.times: dict[str, list[float]] = {name: [] for name in (*others, "ours")}
        self.started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        synchronize()
        self.times["ours"].append(time.perf_counter() - self.started)
        for name, step in self.others.items():
            self.times[name].append(seconds(step))
        if len(self.times["ours"]) >= self.rounds + self.warmup:
            trainer.should_stop = True
        self.started = time.perf_counter()

    def medians(self) -> dict[str, float]:
        """Seconds a step."""
        return {name: statistics.median(times[self.warmup :]) for name, times in self.times.items()}


class Stopwatch(DistillationModule):
    """Splits a step into its parts; each part then waits for the device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts: dict[str, list[float]] = {}
        self.mark = 0.0

    def lap(self, part: str) -> None:
        """Counts the time since the last lap as that part's."""
        synchronize()
        now = time.perf_counter()
        self.parts.setdefault(part, []).append(now - self.mark)
        self.mark = now

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.lap("input")
        super().on_train_batch_start(batch, batch_idx)

    def teacher_outputs_of(self, batch: Any) -> Any:
        self.lap("framework")
        outputs = super().teacher_outputs_of(batch)
        self.lap("teacher")
        return outputs

    def outputs_of(self, image: Tensor) -> Any:
        outputs = super().outputs_of(image)
        self.lap("student forward")
        return outputs

    def losses(self, *args: Any) -> Any:
        step = super().losses(*args)
        self.lap("loss")
        return step

    def on_before_backward(self, loss: Tensor) -> None:
        self.lap("framework")

    def on_after_backward(self) -> None:
        self.lap("backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.lap("framework")

    def on_train_batch_end(self, *_: Any) -> None:
        self.lap("optimizer and the rest")


def fit(module: LightningModule, data: InMemoryDataModule, callbacks: list[Callback], args: Any, folder: str) -> None:
    """Trains until the callbacks have had enough."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        max_epochs=-1 if callbacks else 1,
        max_steps=100_000 if callbacks else args.rounds,
        limit_val_batches=0,
        logger=CSVLogger(folder),
        callbacks=callbacks,
        precision=args.precision,
        devices=1,
        **quiet,  # type: ignore[arg-type]
    )
    trainer.fit(module, datamodule=data)


def run() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, default="cifar")
    parser.add_argument("--batch_size", type=int, help="other than the pair's")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workers", type=int, default=0, help="processes that load images for the others")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--compile", choices=["true", "reduce-overhead", "false"], default="false")
    parser.add_argument("--teacher_backend", default="fast")
    parser.add_argument("--teacher_precision")
    parser.add_argument("--teacher_stream", choices=["true", "false"], default="false")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    make_teacher, make_student, kind, size, batch_size = PAIRS[args.pair]
    batch_size = args.batch_size or batch_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed_everything(0, verbose=False)
    teacher, student = make_teacher(), make_student()
    source = random_data(kind, size, 4096)
    compiled = {"true": True, "false": False}.get(args.compile, args.compile)

    def data() -> InMemoryDataModule:
        return source(batch_size=batch_size, val_split=0, views=2)

    module_args: dict[str, Any] = {
        "compile": compiled,
        "teacher_backend": args.teacher_backend,
        "teacher_precision": args.teacher_precision,
    }

    def distil(cls: type[DistillationModule] = DistillationModule, **kwargs: Any) -> DistillationModule:
        frozen = FrozenTeacher(copy.deepcopy(teacher), stream=args.teacher_stream == "true")
        networks = copy.deepcopy(student), frozen
        return cls(*networks, KD(4.0), BiasStrategy.paper("swap"), **module_args, **kwargs)

    def others() -> dict[str, Callable[[], None]]:
        images = PillowImages(*source().read("train"), kind.mean, kind.std)  # type: ignore[arg-type]
        made: dict[str, Callable[[], None]] = {}
        for name, build in (("usual", usual_step), ("released", released_step)):
            nets = (copy.deepcopy(net).to(device) for net in (student, teacher))
            made[name] = build(*nets, batches(images, batch_size, args.workers), device)
        alone = copy.deepcopy(student).to(device)
        if compiled:
            alone.compile(mode=None if compiled is True else compiled)
        made["supervised"] = supervised_step(alone, data(), device, args.precision)
        return made

    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "cache")
        cached = distil(teacher_cache=TeacherCache(path, "float32"))
        fill_cache(cached, data(), Trainer(precision=args.precision, devices=1, **QUIET))
        for name, module in (("no cache", distil()), ("warm cache", cached)):
            turns = Turns(others(), args.rounds)
            fit(module, data(), [turns], args, folder)
            values[name] = turns.medians()
        values["parts"] = {}
        for name, kwargs in (("no cache", {}), ("warm cache", {"teacher_cache": TeacherCache(path, "float32")})):
            watch = distil(Stopwatch, **kwargs)
            fit(watch, data(), [], args, folder)
            values["parts"][name] = {part: _per_step(times) for part, times in watch.parts.items()}  # type: ignore[attr-defined]
    values["peak"] = {
        "teacher": large_convolution(device, args.teacher_precision or args.precision),
        "student": large_convolution(device, args.precision),
    }
    values["work"] = {
        "teacher": operations(teacher, size, kind.in_channels, backward=False) * batch_size,
        "student": operations(student, size, kind.in_channels, backward=True) * batch_size,
    }
    levers = ("batch_size", "precision", "teacher_stream", *module_args)
    given = {
        name: value
        for name in (*levers, "workers", "rounds")
        if (value := getattr(args, name)) != parser.get_default(name)
    }
    command = f"python benchmarks/throughput.py --pair {args.pair}"
    command += "".join(f" --{name} {value}" for name, value in given.items())
    named = {name: value for name, value in given.items() if name in levers}
    suffix = "".join("_" + (name if value == "true" else str(value)) for name, value in named.items())
    place = "gpu_" if device.type == "cuda" else ""
    save(f"{place}throughput_{args.pair}{suffix}", command, values, report(values, batch_size))


def supervised_step(
    student: nn.Module, data: InMemoryDataModule, device: torch.device, precision: str
) -> Callable[[], None]:
    """The student's own step on the same input, without a Trainer, a metric or a log."""
    data.setup()
    student.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images, size = data.train_set, data.batch_size
    assert isinstance(images, TensorImages)

    def step() -> None:
        batch = images.__getitems__(torch.randint(len(images), (size,)).tolist())
        batch = batch._replace(image=batch.image.to(device), index=batch.index.to(device))
        batch = data.training_views(batch, random_bits(0, 0, batch.index))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = F.cross_entropy(student(data.normalized(batch.image)), batch.target.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def operations(network: nn.Module, size: int, channels: int, backward: bool) -> int:
    """Floating-point operations for one image, counted by PyTorch."""
    network = copy.deepcopy(network).to("cpu")
    with FlopCounterMode(display=False) as counter:
        logits = network(torch.zeros(2, channels, size, size))
        if backward:
            logits.sum().backward()
    return counter.get_total_flops() // 2


def large_convolution(device: torch.device, precision: str) -> float:
    """Operations per second of a convolution that fills the device: 3x3, 256 to 256 channels, 64 images of 32x32."""
    dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.split("-")[0], torch.float32)
    image = torch.randn(64, 256, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        taken = interleaved({"convolution": lambda: F.conv2d(image, weight, padding=1)}, rounds=7)["convolution"]
    return 2 * 9 * weight[..., 0, 0].numel() * 64 * 32 * 32 / taken


def _per_step(times: list[float]) -> float:
    return statistics.median(times[len(times) // 4 :])


def report(values: dict[str, Any], batch_size: int) -> str:
    """The tables."""
    rows = []
    for name in ("no cache", "warm cache"):
        times = values[name]
        ratios = [f"{times[other] / times['ours']:.2f}" for other in ("usual", "released")]
        milliseconds = [f"{1e3 * times[key]:.1f}" for key in ("ours", "usual", "released")]
        rows.append([f"ours, {name}", *milliseconds, f"{batch_size / times['ours']:.0f}", *ratios])
    head = ["", "ours [ms]", "usual [ms]", "released [ms]", "ours [img/s]", "usual / ours", "released / ours"]
    warm = values["warm cache"]
    parts = values["parts"]
    names = list(dict.fromkeys(part for form in parts.values() for part in form))
    cells = [[part, *(f"{1e3 * form.get(part, 0):.2f}" for form in parts.values())] for part in names]
    peak = values["peak"]
    least = {network: work / peak[network] for network, work in values["work"].items()}  # seconds
    shares = {
        "no cache": sum(least.values()) / values["no cache"]["ours"],
        "warm cache": least["student"] / warm["ours"],
        "teacher": least["teacher"] / parts["no cache"]["teacher"],
    }
    return "\n\n".join(
        [
            f"Batches of {batch_size}; medians of steps that took turns.\n\n" + table(head, rows),
            "Warm-cache distillation step over the student's own supervised step without a Trainer: "
            f"{1e3 * warm['ours']:.1f} ms / {1e3 * warm['supervised']:.1f} ms = "
            f"{warm['ours'] / warm['supervised']:.3f}.",
            f"A large convolution reaches {peak['student'] / 1e12:.2f} TFLOP/s here in the student's precision and "
            f"{peak['teacher'] / 1e12:.2f} in the teacher's. At that speed, our step would take "
            f"{100 * shares['no cache']:.0f} % of its time, {100 * shares['warm cache']:.0f} % with the cache, and the "
            f"teacher alone {100 * shares['teacher']:.0f} %. 240 epochs of 50,000 images: "
            f"{240 * 50_000 / batch_size * values['no cache']['ours'] / 3600:.1f} hours, "
            f"{240 * 50_000 / batch_size * warm['ours'] / 3600:.1f} with the cache.",
            "Parts of our step, each timed apart:\n\n" + table(["part [ms]", *parts], cells),
        ]
    )


if __name__ == "__main__":
    run()
