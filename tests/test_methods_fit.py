"""Every second shipped method trains on real images from the command line, half of them with the strategy off."""

import csv
import math
from pathlib import Path

import pytest

from lightning_biaskd.__main__ import main
from lightning_biaskd.command_line.shipped import CONFIGS

OTHERS = ("cwd", "deit_hard", "deit_soft", "mgd_detection", "pkd")  # for maps, two heads or boxes
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml") if path.stem not in OTHERS)


@pytest.mark.parametrize(
    ("method", "bias"), [(method, ("none", "paper")[number % 2]) for number, method in enumerate(METHODS[::2])]
)
def test_fit(method, bias, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ["configs/quickstart.yaml", f"configs/method/{method}.yaml", f"configs/bias/{bias}.yaml"]
    options = ["accelerator=cpu", "max_epochs=2", "limit_train_batches=2", "limit_val_batches=1"]
    options += ["enable_progress_bar=false"]
    flags = [f"--data.strong_view={'two_views' in method}", "--test_after_fit=false"]
    main(["fit", *(w for f in files for w in ("-c", f)), *(f"--trainer.{option}" for option in options), *flags])
    rows = list(csv.DictReader(Path("runs/quickstart/version_0/metrics.csv").read_text().splitlines()))
    losses = [float(row["train/loss_kd"]) for row in rows if row.get("train/loss_kd")]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[0] != losses[1]
