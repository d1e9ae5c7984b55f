"""Tables and figures of speed, from the JSON files that the benchmarks write."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from accuracies import RESULTS, markdown, span

CIFAR = {
    "default (`teacher_backend: fast`)": ("cifar", "no cache"),
    "`compile`, `teacher_backend: onnxruntime`": ("cifar_compile_onnxruntime", "no cache"),
    "`compile`, `teacher_precision: bf16`": ("cifar_compile_bf16", "no cache"),
    "warm cache": ("cifar", "warm cache"),
    "warm cache, `compile`": ("cifar_compile", "warm cache"),
}
SMALL = {
    "default": ("small", "no cache"),
    "warm cache": ("small", "warm cache"),
    "warm cache, `compile`": ("small_compile", "warm cache"),
    "warm cache, `compile`, `bf16-mixed`": ("small_bf16-mixed_compile", "warm cache"),
}

GPU = {
    "batches of 64": ("cifar", 64),
    "batches of 64, `compile`, `bf16-mixed`": ("cifar_bf16-mixed_compile", 64),
    "batches of 512, `compile`, `bf16-mixed`": ("cifar_512_bf16-mixed_compile", 512),
}


def result(name: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def throughput(pair: str, place: str = "") -> list[dict[str, Any]]:
    """All throughput results of a pair, on a CPU or with ``place="gpu_"`` on a GPU."""
    return [result(path.stem) for path in sorted(RESULTS.glob(f"{place}throughput_{pair}*.json"))]


def steps(title: str, rows: dict[str, tuple[str, str]]) -> str:
    """How long a step takes, and how much longer it takes elsewhere."""
    cells = []
    for name, (file, form) in rows.items():
        times = result(f"throughput_{file}")[form]
        others = (f"{times[other] / times['ours']:.2f}×" for other in ("usual", "released"))
        cells.append([name, f"{1000 * times['ours']:.0f}", *others])
    return markdown([title, "step [ms]", "usual loop", "the paper's released script"], cells)


def gpu_steps() -> str:
    """The same on a GPU, with images per second."""
    cells = []
    for name, (file, batch_size) in GPU.items():
        for form in ("no cache", "warm cache"):
            times = result(f"gpu_throughput_{file}")[form]
            others = (f"{times[other] / times['ours']:.2f}×" for other in ("usual", "released"))
            alone = f"{times['ours'] / times['supervised']:.2f}"
            cells.append(
                [f"{name}, {form}", f"{1000 * times['ours']:.1f}", f"{batch_size / times['ours']:,.0f}", *others, alone]
            )
    head = ["resnet32x4 → resnet8x4, 32x32 colour", "step [ms]", "images a second"]
    return markdown([*head, "usual loop", "the paper's released script", "over the student alone"], cells)


def _gpu() -> str:
    (device,) = {found["machine"]["device"] for found in throughput("cifar", "gpu_")}
    return str(device)


def over_the_student(pair: str, place: str = "") -> list[float]:
    """A step with a warm cache over a supervised step of the student alone without a Trainer."""
    return [found["warm cache"]["ours"] / found["warm cache"]["supervised"] for found in throughput(pair, place)]


def share_of_peak(pair: str) -> list[float]:
    """Percent of the speed of a large convolution that the student's step reaches."""
    return [
        100 * found["work"]["student"] / found["peak"]["student"] / found["warm cache"]["ours"]
        for found in throughput(pair)
    ]


def _milliseconds(name: str) -> str:
    return f"{1000 * result(f'throughput_{name}')['no cache']['ours']:.0f}"


def _over_bare(name: str, bare: str = "the same losses, bare") -> str:
    seconds = result("overhead")["seconds"]
    return f"{1000 * (seconds[name] - seconds[bare]):.2f}"


def _faster(*names: str) -> str:
    found = result("decoding")["cpu"]
    return span((found[name] / found["torchvision, ImageFolder and Pillow"] for name in names), 1)


def _strategy() -> str:
    found = result("loss")
    modes = [found[name]["64x100"]["seconds"] for name in found if name.startswith("KD, ")]
    return span((1000 * (seconds - found["KD"]["64x100"]["seconds"]) for seconds in modes), 1)


def _start() -> str:
    seconds = result("startup")["seconds"]
    return f"{seconds['import lightning_biaskd'] / seconds['import lightning, torchvision']:.2f}"


def _machine() -> str:
    """What the throughput was measured on, the same for both pairs."""
    found = {
        (each["machine"]["device"], each["machine"]["threads"]) for each in throughput("cifar") + throughput("small")
    }
    ((device, threads),) = found
    return f"{threads} threads of an {device} CPU"


TABLES: dict[str, Callable[[], str]] = {
    "steps cifar": lambda: steps("resnet32x4 → resnet8x4, 32x32 colour, batches of 64", CIFAR),
    "steps small": lambda: steps("resnet14 → half-width ResNet-8, 28x28 grey, batches of 128", SMALL),
    "steps gpu": gpu_steps,
}
FIGURES: dict[str, Callable[[], str]] = {
    "warm cache": lambda: span(over_the_student("cifar") + over_the_student("small"), 2),
    "warm cache cifar": lambda: span(over_the_student("cifar"), 2),
    "warm cache small": lambda: span(over_the_student("small"), 2),
    "share of peak small": lambda: span(share_of_peak("small"), 0),
    "cifar": lambda: _milliseconds("cifar"),
    "cifar compiled": lambda: _milliseconds("cifar_compile"),
    "small": lambda: _milliseconds("small"),
    "small compiled": lambda: _milliseconds("small_compile"),
    "input 64": lambda: f"{result('input')['64']['ratio']:.0f}",
    "input 1024": lambda: f"{result('input')['1024']['ratio']:.0f}",
    "input ms": lambda: f"{1000 * result('input')['64']['ours']:.1f}",
    "decoding torchcodec": lambda: _faster("photos, torchcodec"),
    "decoding prepared": lambda: _faster("prepared folders, torchcodec", "prepared litdata, torchcodec"),
    "evaluation torchcodec": lambda: "{:.0f} of 255 at most, and {:.3f} on average".format(
        *result("decoding")["evaluation"]["torchcodec"]
    ),
    "module": lambda: _over_bare("DistillationModule"),
    "self.log": lambda: _over_bare("seven values by self.log in every step"),
    "BiasMonitor": lambda: _over_bare("DistillationModule with BiasMonitor", "DistillationModule"),
    "speed machine": _machine,
    "gpu": _gpu,
    "warm cache gpu": lambda: span(over_the_student("cifar", "gpu_"), 2),
    "strategy": _strategy,
    "start": _start,
    "kills": lambda: str(len(result("kill_and_resume")["trials"])),
    "kills equal": lambda: str(result("kill_and_resume")["equal"]),
}
