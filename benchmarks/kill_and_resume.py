"""Kills runs at random moments, resumes them, and compares their end, bit by bit, with that of a run left alone.

    python benchmarks/kill_and_resume.py --trials 20

Digits, CRD with its memory bank beside KD, averaged weights, a checkpoint every seven steps and every epoch. Each trial
is killed with SIGKILL (or, every fourth, SIGTERM) up to three times, and each time goes on with ``--ckpt_path last``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import save, table

from lightning_biaskd.training.checkpoint import newest

METHOD = """
model:
  class_path: DistillationModule
  init_args:
    distiller:
      class_path: WeightedSum
      init_args:
        parts:
          - [{class_path: CRD, init_args: {negatives: 64}}, 0.8]
          - [{class_path: KD}, 1.0]
trainer:
  max_epochs: 30
  callbacks:
    - {class_path: EMA, init_args: {decay: 0.99}}
    - class_path: ModelCheckpoint
      init_args: {monitor: val/acc1, mode: max, filename: best, enable_version_counter: false}
    - class_path: ModelCheckpoint
      init_args: {filename: last, enable_version_counter: false, every_n_train_steps: 7}
    - class_path: ModelCheckpoint
      init_args: {filename: epoch, enable_version_counter: false}
"""
PARTS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "random_states", "global_step")


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A run, or the rest of one."""
    words = ["fit", "-c", "configs/quickstart.yaml", "-c", "method.yaml", "--test_after_fit", "false"]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--ckpt_path", "last"]
    (folder / "method.yaml").write_text(METHOD)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "lightning_biaskd", *words]
    return subprocess.Popen(program, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ended_with(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run that is over, and the best metric that it knows of."""
    path = newest(folder.rglob("epoch.ckpt"))
    assert path is not None
    checkpoint = torch.load(path, weights_only=True)
    best = [state["best_model_score"] for key, state in checkpoint["callbacks"].items() if "val/acc1" in key]
    return {**{part: checkpoint[part] for part in PARTS}, "best": best}


def same(a: Any, b: Any) -> bool:
    """Bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def run() -> None:
    """Kills, resumes, compares and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        begun = time.perf_counter()
        if start(whole).wait():
            raise SystemExit("the run that is not killed failed")
        duration = time.perf_counter() - begun
        expected = ended_with(whole)
        for trial in range(args.trials):
            folder = Path(place) / f"trial{trial}"
            folder.mkdir()
            kills, how = [], signal.SIGTERM if trial % 4 == 3 else signal.SIGKILL
            for _ in range(3):
                process = start(folder)
                wait = chance.uniform(0.4, 0.95) * duration
                try:
                    process.wait(wait)
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(how)
                    process.wait()
                    written = newest(folder.rglob("*.ckpt"))
                    step = torch.load(written, weights_only=True)["global_step"] if written else 0
                    kills.append(step)
            code = start(folder).wait()
            found = ended_with(folder)
            different = [part for part in expected if not same(expected[part], found[part])]
            rows.append([trial, how.name, ", ".join(map(str, kills)), code, ", ".join(different) or "none"])
            print(*rows[-1], flush=True)
    equal = sum(row[-1] == "none" and row[-2] == 0 for row in rows)
    head = ["trial", "signal", "killed; last checkpoint of step", "exit code of the last part", "parts that differ"]
    text = f"{equal} of {len(rows)} end bit-equal to the run that was not killed.\n\n{table(head, rows)}"
    command = f"python benchmarks/kill_and_resume.py --trials {args.trials} --seed {args.seed}"
    save("kill_and_resume", command, {"equal": equal, "trials": rows}, text)


if __name__ == "__main__":
    run()
