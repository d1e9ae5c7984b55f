"""What the timing scripts share: contenders take turns in one run, medians are compared, results are written down."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision

RESULTS = Path(__file__).parent / "results"


def synchronize() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def interleaved(contenders: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> dict[str, float]:
    """Median seconds of each contender; they take turns, so that what else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + rounds):
        for name, work in contenders.items():
            taken = seconds(work)
            if turn >= warmup:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def machine() -> dict[str, str]:
    """What it was measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def save(name: str, command: str, values: Mapping[str, Any], text: str) -> None:
    """Writes ``results/NAME.json`` and ``results/NAME.md``, and prints the latter."""
    on = machine()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"command": command, "machine": on, **values}, indent=1) + "\n")
    told = ", ".join(f"{key} {value}" for key, value in on.items() if key != "device")
    page = f"`{command}` on {on['device']}; {told}.\n\n{text}\n"
    (RESULTS / f"{name}.md").write_text(page)
    print(page)
