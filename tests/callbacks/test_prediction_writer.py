"""Predictions in a file: each image once, ordered by index, with its label and its probabilities."""

import csv
from importlib.util import find_spec

import pytest
import torch
from lightning.pytorch import Trainer
from processes import spawn
from tiny import CLASSES, TinyData, network
from torch.utils.data import DataLoader, TensorDataset

from lightning_biaskd import ClassificationModule, UserError
from lightning_biaskd.callbacks import PredictionWriter


def predicted(trainer, path, module=None, data=None, **kwargs):
    module = module or ClassificationModule(network())
    run = trainer(callbacks=[PredictionWriter(str(path))], **kwargs)
    run.predict(module, data or TinyData(), return_predictions=False)
    return module


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_index_label_class_and_probabilities(trainer, tmp_path):
    path = tmp_path / "new" / "folder" / "predictions.csv"
    module = predicted(trainer, path)
    rows = rows_of(path)
    image, target = TinyData().loader.dataset.tensors
    expected = module.eval()(image).softmax(1)
    assert list(rows[0]) == ["index", "label", "predicted", *(f"probability_{c}" for c in range(CLASSES))]
    assert [int(row["index"]) for row in rows] == list(range(48))
    assert [int(row["label"]) for row in rows] == target.tolist()
    assert [int(row["predicted"]) for row in rows] == expected.argmax(1).tolist()
    found = torch.tensor([[float(row[f"probability_{c}"]) for c in range(CLASSES)] for row in rows])
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)


def test_images_without_labels_have_an_empty_label(trainer, tmp_path):
    images = TensorDataset(torch.randn(7, 1, 6, 6))
    predicted(trainer, tmp_path / "a.csv", data=DataLoader(images, batch_size=3))
    assert [row["label"] for row in rows_of(tmp_path / "a.csv")] == [""] * 7


def test_a_shuffled_loader_is_ordered_by_index(trainer, tmp_path):
    image, target = TinyData().loader.dataset.tensors
    loader = DataLoader(TensorDataset(image, target), batch_size=5, sampler=torch.randperm(48).tolist())
    predicted(trainer, tmp_path / "a.csv", data=loader)
    rows = rows_of(tmp_path / "a.csv")
    assert [int(row["index"]) for row in rows] == list(range(48))
    assert [int(row["label"]) for row in rows] == target.tolist()


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_a_loader_that_knows_no_indices_is_numbered_as_it_comes(trainer, tmp_path):
    batches = [(torch.randn(3, 1, 6, 6), torch.tensor([2, 1, 0])), (torch.randn(2, 1, 6, 6), torch.tensor([4, 5]))]

    class Loader:
        def __iter__(self):
            return iter(batches)

    predicted(trainer, tmp_path / "a.csv", data=Loader())
    assert [(row["index"], row["label"]) for row in rows_of(tmp_path / "a.csv")] == [
        *[("0", "2"), ("1", "1"), ("2", "0"), ("3", "4"), ("4", "5")]
    ]


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="no pyarrow")
def test_parquet_holds_the_same(trainer, tmp_path):
    from pyarrow import parquet

    predicted(trainer, tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert table["index"] == list(range(48))
    assert len(table) == 3 + CLASSES


def test_without_pyarrow_parquet_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("lightning_biaskd.callbacks.prediction_writer.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs pyarrow.*pip install pyarrow, or write a \.csv"):
        PredictionWriter("a.parquet")


@pytest.mark.parametrize("name", ["a.txt", "folder", "a"])
def test_other_endings_are_refused_at_once(name):
    with pytest.raises(UserError, match=r"ends in \.csv or \.parquet"):
        PredictionWriter(name)


def test_predictions_that_are_no_logits_are_refused(trainer, tmp_path):
    class Maps(ClassificationModule):
        def predict_step(self, batch, batch_idx):
            return torch.zeros(len(batch[0]), 2, 3, 3)

    with pytest.raises(UserError, match="predict_step returned .*return logits"):
        predicted(trainer, tmp_path / "a.csv", Maps(network()))
    assert not (tmp_path / "a.csv").exists()


def on_two_ranks(rank, folder):
    import os

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=(folder / "port").read_text(), LOCAL_RANK=str(rank), WORLD_SIZE="2"
    )
    os.environ.update(NODE_RANK="0", RANK=str(rank), GROUP_RANK="0", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="a")
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(13, 1, 6, 6), torch.arange(13) % CLASSES)
    trainer = Trainer(
        **{"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False},
        callbacks=[PredictionWriter(str(folder / "a.csv"))],
    )
    trainer.predict(ClassificationModule(network()), DataLoader(data, batch_size=4), return_predictions=False)


def test_two_processes_write_each_image_once(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    spawn(on_two_ranks, (tmp_path,), nprocs=2)
    rows = rows_of(tmp_path / "a.csv")
    assert [int(row["index"]) for row in rows] == list(range(13))
    assert [int(row["label"]) for row in rows] == [i % CLASSES for i in range(13)]
    assert len({row["probability_0"] for row in rows}) == 13
