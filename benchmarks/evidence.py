"""All of the evidence: trains the teachers that are missing, then runs the matrices; each goes on where it was.

    python benchmarks/evidence.py                      # all of it; about half a day on two cores
    python benchmarks/evidence.py --matrices photos    # one of photos, methods, methods_vit, camvid, main, when, ...

Fashion-MNIST must lie where Debian's package dataset-fashion-mnist puts it. The photographs lie in data/cifar10_jpeg,
data/tiny_imagenet_100, data/camvid and data/bccd, and published networks in data/weights, as
configs/evidence/photos.yaml says.
What comes out is in runs/evidence; benchmarks/results_page.py makes docs/results.md and the README's table of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RECIPE = "configs/evidence"
CLOTHES = ["configs/recipe/teacher_fashion_mnist.yaml", f"{RECIPE}/model_larger.yaml"]
PHOTOS = [f"{RECIPE}/cifar10.yaml", f"{RECIPE}/model_photos.yaml"]
SMALL = [*PHOTOS, f"{RECIPE}/model_same_kind.yaml"]
TEACHERS: dict[str, tuple[list[str], int, dict[str, object]]] = {
    "larger": (CLOTHES, 30, {"data.train_size": 10000}),
    "equal": ([CLOTHES[0], f"{RECIPE}/model_equal.yaml"], 15, {"data.train_size": 10000}),
    "tenth": (CLOTHES, 30, {"data.train_size": 6000}),
    "noise": (CLOTHES, 30, {"data.train_size": 10000, "data.label_noise": 0.2}),
    "weak": (CLOTHES, 2, {"data.train_size": 10000}),
    "misled": (CLOTHES, 15, {"data.train_size": 10000, "data.label_noise": 0.6}),
    "full": (CLOTHES, 15, {}),
    "strong": (PHOTOS, 4, {"model.weights": "data/weights/resnet20-12fca82f.th", "model.optimizer.lr": 0.02}),
    "weak_photos": (PHOTOS, 5, {"data.train_size": 2500, "data.batch_size": 64}),
    "camvid": (["configs/recipe/teacher_camvid.yaml"], 100, {"data.size": [90, 120]}),
    "noisy_photos": (PHOTOS, 12, {"data.train_size": 10000, "data.batch_size": 64, "data.label_noise": 0.4}),
    "vit": ([*PHOTOS, f"{RECIPE}/model_vit.yaml"], 12, {}),
    "bccd": (["configs/recipe/teacher_bccd.yaml"], 12, {"trainer.check_val_every_n_epoch": 4}),
    "own": ([f"{RECIPE}/tiny_imagenet.yaml", f"{RECIPE}/model_own.yaml"], 4, {}),
    "same_kind": (SMALL, 12, {"data.train_size": 10000, "data.batch_size": 64}),
}
MATRICES = ("photos", "methods", "methods_vit", "camvid", "bccd", "main", "when", "full", "digits")


def teacher(name: str) -> list[str]:
    """The command that trains one."""
    files, epochs, flags = TEACHERS[name]
    return [
        *("fit", *(word for file in files for word in ("-c", file)), f"--trainer.max_epochs={epochs}"),
        *(f"--{flag}={value}" for flag, value in flags.items()),
        *("--trainer.logger.save_dir=runs/evidence/teachers", f"--trainer.logger.name={name}"),
        *("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"),
    ]


def biaskd(words: list[str]) -> subprocess.Popen[bytes]:
    """A command in a process of its own."""
    print("biaskd", *words, flush=True)
    return subprocess.Popen([sys.executable, "-m", "lightning_biaskd", *words])


def run() -> None:
    """Does what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", nargs="+", choices=MATRICES, default=MATRICES)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    place = Path("runs/evidence/teachers")
    missing = [name for name in TEACHERS if not (place / name / "version_0/checkpoints/last.ckpt").is_file()]
    for start in range(0, len(missing), args.jobs):
        running = [biaskd(teacher(name)) for name in missing[start : start + args.jobs]]
        if any(process.wait() for process in running):
            raise SystemExit("a teacher failed")
    for name in args.matrices:
        words = ["compare", "-c", f"{RECIPE}/{name}.yaml", "--output", f"runs/evidence/{name}"]
        words += ["--jobs", str(args.jobs), "--threads", str(args.threads)]
        if biaskd(words).wait():
            raise SystemExit(f"{name}: not all runs are there")


if __name__ == "__main__":
    run()
