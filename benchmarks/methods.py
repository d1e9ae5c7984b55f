"""Distils the quickstart's pair by every shipped method, with the strategy off and on, and writes a table.

    python benchmarks/methods.py --seeds 0 1 --epochs 20

Digits are small and easy, and the teacher has seen a fifth of the student's images: the table shows that every method
trains, not which is best.
"""

from __future__ import annotations

import argparse
import csv
import logging
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import torch

from lightning_biaskd.__main__ import main
from lightning_biaskd.command_line.shipped import CONFIGS

FORMS = {"plain": "bias/none.yaml", "paper": "bias/paper.yaml"}


def accuracy(method: Path, bias: str, seed: int, epochs: int) -> float:
    """Test accuracy in percent, last epoch."""
    with tempfile.TemporaryDirectory() as folder:
        files = [CONFIGS / "quickstart.yaml", method, CONFIGS / bias]
        options = {
            "seed_everything": seed,
            "trainer.accelerator": "cpu",
            "trainer.max_epochs": epochs,
            "trainer.enable_progress_bar": "false",
            "trainer.logger.save_dir": folder,
            "trainer.limit_val_batches": 0,
            "trainer.callbacks": "null",
            "trainer.enable_checkpointing": "false",
            "model.lr_scheduler.T_max": epochs,
            "data.strong_view": str("two_views" in method.stem).lower(),
        }
        words = [word for file in files for word in ("-c", str(file))]
        main(["fit", *words, *(f"--{key}={value}" for key, value in options.items())])
        (metrics,) = Path(folder).rglob("metrics.csv")
        rows = list(csv.DictReader(metrics.read_text().splitlines()))
    return 100 * next(float(row["test/acc1"]) for row in rows if row.get("test/acc1"))


def run() -> None:
    """Runs the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "methods_digits.md")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start = time.time()
    lines = [
        "| method | " + " | ".join(FORMS) + " |",
        "|---|" + "---|" * len(FORMS),
    ]
    for method in sorted((CONFIGS / "method").glob("*.yaml")):
        if "imagenet" in method.stem:
            continue
        cells = []
        for bias in FORMS.values():
            values = [accuracy(method, bias, seed, args.epochs) for seed in args.seeds]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        lines.append(f"| {method.stem} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    head = (
        f"Digits, the quickstart's pair, {args.epochs} epochs, last epoch, test top-1 in % (mean ± standard deviation "
        f"of seeds {', '.join(map(str, args.seeds))}); teacher 94.44.\n`paper`: blend, group, complement.\n\n"
        f"`python benchmarks/methods.py --seeds {' '.join(map(str, args.seeds))} --epochs {args.epochs}`, "
        f"{(time.time() - start) / 60:.0f} minutes on {torch.get_num_threads()} CPU threads, "
        f"torch {torch.__version__}, lightning {lightning.__version__}, Python {platform.python_version()}.\n\n"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    run()
