"""Input from photographs: decoding, a random crop and a flip, against torchvision's ImageFolder with Pillow.

python benchmarks/decoding.py PHOTOS

PHOTOS is a folder of class folders. The prepared images are written to a temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timing import save, table
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights

from lightning_biaskd.data import ImageNetDataModule
from lightning_biaskd.data.batch import collate
from lightning_biaskd.data.prepare import prepare

USUAL = "torchvision, ImageFolder and Pillow"
SIZE = 224
Contenders = dict[str, tuple[Dataset[Any], Callable[..., Any]]]
DECODERS = ("pillow", "torchcodec")


def modules(photos: Path, scratch: Path) -> dict[str, ImageNetDataModule]:
    """Our data modules by what they read, after storing the images of the prepared ones."""
    source = scratch / "photos"
    source.mkdir()
    for split in ("train", "val"):
        (source / split).symlink_to(photos.resolve())
    kwargs: dict[str, Any] = {"val_split": 0, "image_size": SIZE, "num_workers": 2}
    found = {f"photos, {name}": ImageNetDataModule(str(source), **kwargs, decoder=name) for name in DECODERS}
    for format in ("folders", "litdata"):
        prepare(str(source), str(scratch / format), format, num_workers=2)
        for name in DECODERS:
            root = str(scratch / format)
            found[f"prepared {format}, {name}"] = ImageNetDataModule(root, **kwargs, format=format, decoder=name)
    for module in found.values():
        module.setup()
    return found


def rates(
    contenders: dict[str, tuple[Dataset[Any], Callable[..., Any]]],
    rounds: int,
    clock: Callable[[], float],
    workers: int,
) -> dict[str, float]:
    """Images of each contender in a second of ``clock``: medians, with contenders taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(1 + rounds):
        for name, (dataset, collating) in contenders.items():
            order = 10 * list(range(len(dataset))) if workers else range(len(dataset))  # type: ignore[arg-type]
            loader = DataLoader(dataset, 25, sampler=order, num_workers=workers, collate_fn=collating)
            batches = iter(loader)
            next(batches)  # workers have started
            start = clock()
            count = sum(len(batch[0]) for batch in batches)
            if turn:
                taken[name].append(count / (clock() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def _with_ratio(found: dict[str, float], name: str) -> list[tuple[float, str]]:
    return [(found[name], ".0f"), (found[name] / found[USUAL], ".2f")]


def differences(module: ImageNetDataModule) -> tuple[float, float]:
    """Largest and mean difference of evaluation's pixels from those of torchvision's weights, of 255."""
    transform = ResNet18_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (module.mean, module.std))
    largest, total = 0.0, 0.0
    dataset: Any = module.test_set
    for index in range(len(dataset)):
        path = dataset.images[index][2]
        with Image.open(path) as image:
            expected = (255 * (transform(image.convert("RGB")) * std + mean)).round()
        difference = (dataset[index][0] - expected).abs()
        largest, total = max(largest, float(difference.max())), total + float(difference.mean())
    return largest, total / len(dataset)


def run() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--wall_rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    usual = transforms.Compose(
        [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
    with tempfile.TemporaryDirectory() as scratch:
        ours = modules(args.photos, Path(scratch))
        contenders: Contenders = {USUAL: (ImageFolder(str(args.photos), usual), default_collate)}
        contenders |= {name: (module.train_set, collate) for name, module in ours.items()}
        cpu = rates(contenders, args.rounds, time.process_time, 0)
        wall = rates(contenders, args.wall_rounds, time.perf_counter, 2)
        parity = {name: differences(ours[f"photos, {name}"]) for name in DECODERS}
        sizes = {}
        for name, folder in (("photos", args.photos), ("prepared", Path(scratch, "folders", "train"))):
            files = [path.stat().st_size for path in folder.glob("*/*")]
            sizes[name] = sum(files) / len(files)
    head = ["", "images per CPU-second", "ratio", "images per second, 2 workers", "ratio"]
    rows = [
        [
            name,
            f"{cpu[name]:.0f}",
            f"{cpu[name] / cpu[USUAL]:.2f}",
            f"{wall[name]:.0f}",
            f"{wall[name] / wall[USUAL]:.2f}",
        ]
        for name in contenders
    ]
    told = [
        table(head, rows),
        f"Photographs of {sizes['photos'] / 1000:.0f} kB on average, prepared {sizes['prepared'] / 1000:.0f} kB. "
        f"Training views of {SIZE} pixels.",
        *(
            f"Evaluation with {name} differs from torchvision's weights by {largest:.0f} of 255 at most, {mean:.3f} on "
            "average."
            for name, (largest, mean) in parity.items()
        ),
    ]
    values = {"cpu": cpu, "wall": wall, "evaluation": parity, "bytes": sizes}
    save("decoding", "python benchmarks/decoding.py PHOTOS", values, "\n\n".join(told))


if __name__ == "__main__":
    run()
