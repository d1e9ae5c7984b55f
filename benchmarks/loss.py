"""The loss alone, forward and backward: each method that reads logits, and each mode of the strategy around KD.

    python benchmarks/loss.py

Memory is what is alive at once beyond the logits, in multiples of one matrix of logits; time is set against that of
moving what must be moved: reading two matrices of logits and writing one of gradients, at the speed of a copy.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved, save, table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_biaskd import BiasStrategy, Distiller, Outputs, distillers

SIZES = ((64, 100), (256, 1000), (1024, 1000), (4096, 100), (256, 21_000))
MODES = ("swap", "blend", "onehot", "revise", "none", "drop")
SMALL = {"WKD", "MLKD"}  # they hold matrices of classes by classes


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: Any) -> None:
        """Counts a storage once, until it is gone."""
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        """It is gone."""
        self.seen.discard(key)
        self.now -= size


def peak_bytes(work: Callable[[], Any]) -> int:
    """Of one call."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    with Alive() as alive:
        work()
    return alive.peak


def methods() -> dict[str, Distiller]:
    """Those that read logits alone and need no arguments."""
    classes = [getattr(distillers, name) for name in distillers.__all__]
    found = [c for c in classes if isinstance(c, type) and issubclass(c, Distiller) and c.reads == "logits"]
    found = [c for c in found if c not in (Distiller, distillers.WeightedSum)]
    return {c.__name__: c() for c in found}


def backward(student: Tensor, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A loss and its gradient."""

    def work() -> None:
        student.grad = None
        loss().backward()

    return work


def run() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kd = distillers.KD()
    values: dict[str, Any] = {}
    rows: dict[str, list[str]] = {}
    for size, classes in SIZES:
        torch.manual_seed(0)
        student = torch.randn(size, classes, device=device, requires_grad=True)
        teacher = torch.randn(size, classes, device=device)
        target = torch.where(torch.rand(size, device=device) < 0.9, teacher.argmax(1), teacher.argmin(1))

        contenders: dict[str, Callable[[], Any]] = {}
        outputs = Outputs(student), Outputs(teacher)
        for name, method in methods().items():
            if name not in SMALL or classes <= 1000:
                method = method.to(device)
                contenders[name] = backward(student, lambda m=method, o=outputs, y=target: m(*o, y).mean())  # type: ignore[misc]
        for mode in MODES:
            bias = BiasStrategy.paper(mode).to(device)
            bias.gamma.fill_(0.5)
            contenders[f"KD, {mode}"] = backward(student, lambda b=bias, o=outputs, y=target: b(kd, *o, y).total)  # type: ignore[misc]
        copies = [teacher.clone() for _ in range(3)]

        def copy(copies: list[Tensor] = copies) -> None:
            copies[2].copy_(copies[0])
            copies[0].sum()

        times = interleaved({**contenders, "copy": copy}, args.rounds)
        must = times.pop("copy")
        for name, work in contenders.items():
            memory = peak_bytes(work) / teacher.nbytes
            taken = times[name]
            values.setdefault(name, {})[f"{size}x{classes}"] = {
                "seconds": taken,
                "times_must": taken / must,
                "memory": memory,
            }
            rows.setdefault(name, [name]).append(f"{1e3 * taken:.2f} ({taken / must:.0f}, {memory:.0f})")
    filled = [[*row, *["" for _ in range(len(SIZES) + 1 - len(row))]] for row in rows.values()]
    head = ["method", *(f"{size} x {classes}" for size, classes in SIZES)]
    text = "Milliseconds, forward and backward (times the time of moving what must be moved, matrices of memory).\n\n"
    save("loss", "python benchmarks/loss.py", values, text + table(head, filled))


if __name__ == "__main__":
    run()
