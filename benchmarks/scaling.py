"""What a step costs in arithmetic, memory, input and communication, and how it scales to many GPUs: on paper.

    python benchmarks/scaling.py                    # predictions alone
    python benchmarks/scaling.py --root FOLDER      # and measures a step on two processes of this machine, see
                                                    # scaling_measured.py; FOLDER has train and val, a folder per class

Assumptions are constants below, or what decoding.py measured. ``results/scaling.json`` has them with the predictions
that docs/scaling.md shows.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import scaling_measured
from network_costs import Costs, costs, parameters
from timing import RESULTS, save, table
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50

from lightning_biaskd.models import MobileNetV1
from lightning_biaskd.teachers.encoding import Encoding
from lightning_biaskd.teachers.rows import CHECKSUM_BYTES

IMAGES, CLASSES, VIEWS, TOPK = 1_281_167, 1000, 8, 10
BATCH = 64
GPUS = (8, 64, 512)
_DECODED = json.loads((RESULTS / "decoding.json").read_text("utf-8"))


@dataclass(frozen=True)
class Assumptions:
    """Of a cluster of A100 GPUs with 80 GB.

    Attributes:
        share: what operations reach of the peaks below; chosen to give NVIDIA's measured speed of a ResNet-50 in mixed
            precision, see :func:`published`.
        flops: peak of a GPU in bf16.
        bandwidth: peak of its memory in bytes a second.
        launch: the shortest operation in seconds.
        node: GPUs in a node.
        inside: bytes a second that an all-reduce moves inside a node, for each GPU.
        between: bytes a second between nodes, for each node.
        latency: seconds of a message's hop between two GPUs.
        bucket: bytes of gradients that DDP reduces at once.
        jitter: standard deviation of a GPU's step, as a share of it.
        cores: CPU cores that decode for each GPU.
        photo, prepared: images that a core decodes, crops and mirrors a second, of photos and of copies whose shorter
            side is 256, as decoding.py measured.
        photo_bytes, prepared_bytes: of such a file.
    """

    share: float = 0.572
    flops: float = 312e12
    bandwidth: float = 2.039e12
    launch: float = 5e-6
    node: int = 8
    inside: float = 200e9
    between: float = 20e9
    latency: float = 10e-6
    bucket: float = 25e6
    jitter: float = 0.01
    cores: int = 16
    photo: float = _DECODED["cpu"]["photos, torchcodec"]
    prepared: float = _DECODED["cpu"]["prepared litdata, torchcodec"]
    photo_bytes: float = _DECODED["bytes"]["photos"]
    prepared_bytes: float = _DECODED["bytes"]["prepared"]

    def seconds(self, costs: Costs) -> float:
        """Of a step on one GPU in bf16."""
        return costs.seconds(self.share * self.flops, self.share * self.bandwidth, self.launch)


def deit_small() -> nn.Module:
    """The teacher of the third pair."""
    import timm

    network: nn.Module = timm.create_model("deit_small_patch16_224")
    return network


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "ResNet-34 → ResNet-18": (resnet34, resnet18),
    "ResNet-50 → MobileNetV1": (resnet50, MobileNetV1),
    "DeiT-S → ResNet-18": (deit_small, resnet18),
}


def all_reduce(size: float, gpus: int, a: Assumptions) -> float:
    """Seconds to sum ``size`` bytes over all GPUs: a ring inside each node, then one between nodes."""
    inside, nodes = min(gpus, a.node), math.ceil(gpus / a.node)
    moved = 2 * (inside - 1) / inside * size / a.inside + 2 * (nodes - 1) / nodes * size / a.between
    return moved + 2 * math.log2(max(gpus, 1)) * a.latency


def step(student: Costs, teacher: Costs | None, gradients: float, norms: int, gpus: int, a: Assumptions) -> float:
    """Seconds of a step. The gradients' all-reduce overlaps the student's backward pass, but for the last bucket."""
    of_student = a.seconds(student)
    own = of_student + (0 if teacher is None else a.seconds(teacher))
    if gpus == 1:
        return own
    buckets = math.ceil(gradients / a.bucket)
    exposed = max(
        buckets * all_reduce(gradients / buckets, gpus, a) - 2 / 3 * of_student,
        all_reduce(gradients / buckets, gpus, a),
    )
    counts = all_reduce(8, gpus, a)  # of right and wrong samples
    synchronised = 2 * norms * all_reduce(4096, gpus, a)  # statistics forward, their gradients backward
    waiting = a.jitter * own * math.sqrt(2 * math.log(gpus))
    return own + exposed + counts + synchronised + waiting


def predicted(pair: str, a: Assumptions) -> dict[str, Any]:
    """All that docs/scaling.md says of a pair."""
    build_teacher, build_student = PAIRS[pair]
    teacher, student = costs(build_teacher, BATCH, False), costs(build_student, BATCH, True)
    small = {size: (costs(build_teacher, size, False), costs(build_student, size, True)) for size in (8, 1)}
    small[BATCH] = teacher, student
    size, norms = 4.0 * parameters(build_student), norm_layers(build_student)

    def efficiency(gpus: int, cached: bool = False, synchronised: bool = False, batch: int = BATCH) -> float:
        t, s = small[batch]
        parts = s, None if cached else t, size
        return step(*parts, 0, 1, a) / step(*parts, norms if synchronised else 0, gpus, a)

    alone, cached = step(student, teacher, size, 0, 1, a), step(student, None, size, 0, 1, a)
    return {
        "teacher_flops": teacher.flops / BATCH,
        "student_flops": student.flops / BATCH,
        "teacher_traffic": teacher.traffic / BATCH,
        "student_traffic": student.traffic / BATCH,
        "saved": student.saved / BATCH,
        "all_reduce_bytes": size,
        "teacher_bytes": 4.0 * parameters(build_teacher),
        "images_per_second": BATCH / alone,
        "images_per_second_cached": BATCH / cached,
        "cores_photo": BATCH / alone / a.photo,
        "cores_prepared": BATCH / alone / a.prepared,
        "cores_photo_cached": BATCH / cached / a.photo,
        "cores_prepared_cached": BATCH / cached / a.prepared,
        "efficiency": {n: efficiency(n) for n in GPUS},
        "efficiency_cached": {n: efficiency(n, cached=True) for n in GPUS},
        "efficiency_synchronised": {n: efficiency(n, synchronised=True) for n in GPUS},
        "efficiency_512": {n: efficiency(n, batch=512 // n) for n in GPUS},
    }


def norm_layers(build: Callable[[], nn.Module]) -> int:
    """How many layers SyncBatchNorm would replace."""
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in build().modules())


def cache_bytes(topk: int | None) -> int:
    """Of ImageNet's training images, eight views of each and the image itself, in half precision."""
    return IMAGES * (VIEWS + 1) * (Encoding(CLASSES, "float16", topk).width + CHECKSUM_BYTES)


def published(a: Assumptions) -> dict[str, float]:
    """Images a second of training a ResNet-50 with batches of 256, in mixed precision and in TF32.

    Measured: NVIDIA's DeepLearningExamples, ResNet50 v1.5 for PyTorch, DGX A100 with 80 GB, container 21.03. In TF32,
    the peak is half as high and a number takes twice as many bytes.
    """
    step = costs(resnet50, 256, True)
    half = replace(a, flops=a.flops / 2, bandwidth=a.bandwidth / 2)
    return {
        **{"mixed_predicted": 256 / a.seconds(step), "mixed_measured": 2470.0},
        **{"tf32_predicted": 256 / half.seconds(step), "tf32_measured": 938.0},
    }


def run() -> None:
    """Predicts, measures if asked to, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="class folders for the measurement; left out, the stored one is kept")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    a = Assumptions()
    before = RESULTS / "scaling.json"
    kept = json.loads(before.read_text()).get("measured") if before.is_file() else None
    measured = scaling_measured.measure(args.root, args.batch_size, args.rounds) if args.root else kept
    pairs = {pair: predicted(pair, a) for pair in PAIRS}
    values = {
        "assumptions": asdict(a),
        "pairs": pairs,
        "cache": {"topk": cache_bytes(TOPK), "all": cache_bytes(None)},
        "published": published(a),
        "measured": measured,
    }
    rows = [
        [pair, f"{found['images_per_second']:.0f}", *(f"{100 * share:.0f} %" for share in found["efficiency"].values())]
        for pair, found in pairs.items()
    ]
    head = ["pair", "images a second on one GPU", *(f"efficiency on {n} GPUs" for n in GPUS)]
    save("scaling", "python benchmarks/scaling.py --root FOLDER", values, table(head, rows))


if __name__ == "__main__":
    run()
