"""``biaskd validate``, ``test`` and ``predict``: one table or one file, and no new run folder."""

import csv
from pathlib import Path

import pytest

from lightning_biaskd.__main__ import main

FAST = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("command", "title"), [("validate", "On the validation images"), ("test", "On the test images")]
)
def test_one_table_and_no_run_folder(command, title, capsys):
    metric = "[{class_path: torchmetrics.classification.MulticlassF1Score, init_args: {num_classes: 10}}]"
    main([command, *FAST, "--model.metrics", metric])
    out = capsys.readouterr().out
    assert out.count("┏") == 1
    assert title in out
    assert "MulticlassF1Score" in out
    assert list(Path().iterdir()) == []


def test_predict_writes_a_table(capsys):
    main(["predict", *FAST])
    with Path("predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(540))
    assert sum(float(row[f"probability_{c}"]) for c in range(10) for row in rows[:1]) == pytest.approx(1, abs=1e-5)
    assert {row["label"] for row in rows} == {str(label) for label in range(10)}
    assert [path.name for path in Path().iterdir()] == ["predictions.csv"]
    main(["predict", *FAST, "--output", "null", "--trainer.limit_predict_batches", "1"])
    assert [path.name for path in Path().iterdir()] == ["predictions.csv"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["validate", "--data.val_split", "0"], "there is nothing to validate: .*--data.val_split 0.1"),
        (["test", "--trainer.limit_test_batches", "0"], "there is nothing to test"),
        (["predict", "--trainer.limit_predict_batches", "0"], "there is nothing to predict"),
        (["predict", "--output", "a.xlsx"], r"give a path that ends in \.csv or \.parquet"),
    ],
)
def test_nothing_to_do_is_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as end:
        main([*arguments, *FAST])
    assert end.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("biaskd: error")]
    import re

    assert re.search(says, line)
