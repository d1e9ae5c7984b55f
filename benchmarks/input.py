"""Input: a batch of augmented CIFAR images, from memory to normalised floats, against torchvision's pipeline by Pillow.

python benchmarks/input.py
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from timing import interleaved, save, table
from torchvision import transforms

from lightning_biaskd.data import CIFAR100DataModule
from lightning_biaskd.data.batch import TensorImages
from lightning_biaskd.randomness.bits import random_bits


def run() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    pixels = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8)
    images = TensorImages(pixels, torch.zeros(50_000, dtype=torch.int64), torch.arange(50_000))
    data = CIFAR100DataModule()
    if torch.cuda.is_available():
        images.to(torch.device("cuda"))
    array = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    usual = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    rows, values = [], {}
    for size in args.batch_sizes:

        def ours(size: int = size) -> None:
            batch = images.__getitems__(torch.randint(50_000, (size,)).tolist())
            sample = batch.index.to(batch.image.device)
            batch = data.training_views(batch._replace(index=sample), random_bits(0, 0, sample))
            data.normalized(batch.image)

        def pillow(size: int = size) -> None:
            items = torch.randint(50_000, (size,)).tolist()
            torch.stack([usual(Image.fromarray(array[item])) for item in items])

        times = interleaved({"ours": ours, "pillow": pillow}, args.rounds)
        ratio = times["pillow"] / times["ours"]
        values[str(size)] = {**times, "ratio": ratio}
        rows.append([size, f"{1e3 * times['ours']:.2f}", f"{1e3 * times['pillow']:.1f}", f"{ratio:.0f}"])
    head = ["images a batch", "ours [ms]", "torchvision by Pillow, one process [ms]", "times faster"]
    save("input", "python benchmarks/input.py", values, table(head, rows))


if __name__ == "__main__":
    run()
