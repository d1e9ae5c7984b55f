"""Tables and figures of docs/scaling.md, from what scaling.py and cached_images.py wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accuracies import markdown, span
from timings import result

GPUS = ("8", "64", "512")


def _pairs() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = result("scaling")["pairs"]
    return found


def _costs() -> str:
    head = ["for each image, 224x224", "teacher [GFLOP]", "student [GFLOP]", "teacher [MB moved]", "student [MB moved]"]
    head += ["student [MB kept]", "all-reduce [MB a step]", "with the teacher's [MB]"]
    rows = []
    for pair, found in _pairs().items():
        flops = (f"{found[name] / 1e9:.1f}" for name in ("teacher_flops", "student_flops"))
        moved = (f"{found[name] / 1e6:.0f}" for name in ("teacher_traffic", "student_traffic", "saved"))
        both = found["all_reduce_bytes"] + found["teacher_bytes"]
        rows.append([pair, *flops, *moved, f"{found['all_reduce_bytes'] / 1e6:.0f}", f"{both / 1e6:.0f}"])
    return markdown(head, rows)


def _input() -> str:
    head = ["one GPU", "images a second", "CPU cores: photos", "CPU cores: prepared", "read: photos [MB/s]"]
    head += ["read: prepared [MB/s]", "to the GPU [MB/s]"]
    a = result("scaling")["assumptions"]
    rows = []
    for pair, found in _pairs().items():
        for name, suffix in ((pair, ""), (f"{pair}, warm cache", "_cached")):
            speed = found[f"images_per_second{suffix}"]
            cores = (f"{found[f'cores_{kind}{suffix}']:.1f}" for kind in ("photo", "prepared"))
            read = (f"{speed * size / 1e6:.0f}" for size in (a["photo_bytes"], a["prepared_bytes"], 3 * 224**2))
            rows.append([name, f"{speed:.0f}", *cores, *read])
    return markdown(head, rows)


def _efficiency() -> str:
    forms = {
        "64 images on each GPU": "efficiency",
        "the same, warm cache": "efficiency_cached",
        "64 images, SyncBatchNorm": "efficiency_synchronised",
        "512 images in all": "efficiency_512",
    }
    rows = [
        [f"{pair}: {form}", *(f"{100 * found[name][gpus]:.0f} %" for gpus in GPUS)]
        for pair, found in _pairs().items()
        for form, name in forms.items()
    ]
    return markdown(["predicted efficiency", *(f"{gpus} GPUs" for gpus in GPUS)], rows)


def _assumptions() -> str:
    a = result("scaling")["assumptions"]
    rows = [
        ["GPU", f"A100: {a['flops'] / 1e12:.0f} TFLOP/s in bf16 and {a['bandwidth'] / 1e12:.2f} TB/s at most"],
        ["share of both that operations reach", f"{a['share']:.3f}"],
        ["shortest operation", f"{1e6 * a['launch']:.0f} µs"],
        ["node", f"{a['node']} GPUs, {a['inside'] / 1e9:.0f} GB/s for each in an all-reduce"],
        ["network", f"{a['between'] / 1e9:.0f} GB/s for each node, {1e6 * a['latency']:.0f} µs a hop"],
        [
            "overlap",
            f"all buckets of {a['bucket'] / 1e6:.0f} MB but the last one, with two thirds of the student's step",
        ],
        ["waiting for the slowest GPU", f"steps vary by {100 * a['jitter']:.0f} %, normally distributed"],
        ["photo", f"{a['photo_bytes'] / 1e3:.0f} kB; a core decodes and crops {a['photo']:.0f} a second"],
        [
            "prepared image",
            f"{a['prepared_bytes'] / 1e3:.0f} kB; a core decodes and crops {a['prepared']:.0f} a second",
        ],
    ]
    return markdown(["assumption", "value"], rows)


def _measured() -> str:
    found = result("scaling")["measured"]
    names = ("teacher", "student", "input", "all-reduce", "predicted", "step")
    head = [f"ResNet-34 → ResNet-18, {found['batch_size']} images on each of two processes", "CPU time [ms]"]
    titles = {"predicted": "sum: the predicted step", "step": "the measured step"}
    return markdown(head, [[titles.get(name, name), f"{1000 * found[name]:.0f}"] for name in names])


def _over(kind: str, name: str, base: str) -> str:
    found = [each for each in result("cached_images").values() if isinstance(each, dict) and kind in each]
    return span((each[name] / each[base] for each in found), 2)


def _reading() -> str:
    found = [each for each in result("cached_images").values() if isinstance(each, dict) and "read" in each]
    return span((1000 * each["read"] for each in found), 1)


def _error(kind: str) -> str:
    found = result("scaling")["published"]
    return f"{100 * (found[f'{kind}_predicted'] / found[f'{kind}_measured'] - 1):+.0f} %"


TABLES: dict[str, Callable[[], str]] = {
    "scaling costs": _costs,
    "scaling input": _input,
    "scaling efficiency": _efficiency,
    "scaling assumptions": _assumptions,
    "scaling measured": _measured,
}
FIGURES: dict[str, Callable[[], str]] = {
    "cache size": lambda: f"{result('scaling')['cache']['topk'] / 1e6:.0f}",
    "cache size all": lambda: f"{result('scaling')['cache']['all'] / 1e9:.0f}",
    "cached images": lambda: _over("read", "cached", "student"),
    "cached images reading": _reading,
    "uncached images": lambda: _over("read", "uncached", "cached"),
    "scaling error": lambda: f"{100 * result('scaling')['measured']['error']:+.0f} %",
    "scaling tf32": lambda: _error("tf32"),
    "scaling mixed": lambda: _error("mixed"),
}
