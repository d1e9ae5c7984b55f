"""Predictions as a table in a file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lightning_biaskd.distributed.ranks import rank, world_size
from lightning_biaskd.errors import UserError
from lightning_biaskd.files import atomic_write
from lightning_biaskd.networks.outputs import at_least_float32, logits_of
from lightning_biaskd.training.batches import labelled

_ENDINGS = (".csv", ".parquet")


class PredictionWriter(BasePredictionWriter):
    """Writes what ``predict`` finds: a row for each image, ordered by index.

    ================= ======================================================
    column            meaning
    ================= ======================================================
    ``index``         place of the image in its data set, from 0
    ``label``         its label; empty where the batches hold images alone
    ``predicted``     the class with the highest probability
    ``probability_N`` softmax of the logits, one column for each class N
    ================= ======================================================

    On several processes each image has one row, and the first process writes the file. The file appears whole or not at
    all. Nothing is logged.

    Args:
        output: a path that ends in ``.csv``, or in ``.parquet`` where pyarrow is installed.

    Raises:
        UserError: another ending, or pyarrow is missing; on predicting, ``predict_step`` returns no logits (B, C),
            there are several loaders, or the images have no index on several processes.
    """

    def __init__(self, output: str = "predictions.csv") -> None:
        super().__init__("batch")
        self.path = Path(output).expanduser()
        if self.path.suffix.lower() not in _ENDINGS:
            raise UserError(f"predictions can't be written to {output!r}: give a path that ends in .csv or .parquet")
        if self.path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
            raise UserError(f"{output!r} needs pyarrow, which is not installed: pip install pyarrow, or write a .csv")
        if self.path.is_dir():
            raise UserError(f"{output!r} is a folder: give the path of a file")
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keeps the rows of a batch."""
        if dataloader_idx:
            raise UserError("predict writes the images of one loader: predict each data set by itself")
        logits = logits_of(prediction)
        if logits.ndim != 2:
            raise UserError(
                f"predict_step returned {tuple(logits.shape)}: return logits (B, C), or predict without output"
            )
        index = self._index(batch_indices, batch, len(logits))
        label = torch.full_like(index, -1)
        with suppress(UserError):  # a batch without labels
            label = labelled(batch, batch_idx)[1].cpu()
        self._parts.append((index, label, at_least_float32(logits).softmax(1).cpu()))

    def _index(self, batch_indices: Sequence[int] | None, batch: Any, rows: int) -> Tensor:
        if batch_indices and len(batch_indices) == rows:
            return torch.tensor(batch_indices)
        if world_size() > 1:
            raise UserError(
                "the loader doesn't tell which images a batch holds, so several processes can't order them: predict on "
                "one process (--trainer.devices 1), or give a DataLoader of a data set with a length"
            )
        return torch.arange(rows) + sum(len(index) for index, *_ in self._parts)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the rows of all processes, and writes them."""
        none = torch.empty(0, dtype=torch.long)
        columns = tuple(torch.cat(x) for x in zip(*self._parts, strict=True)) or (none, none, torch.empty(0, 0))
        self._parts = []
        gathered: list[Any] = [columns]
        if world_size() > 1:
            gathered = [None] * world_size() if rank() == 0 else []
            dist.gather_object(columns, gathered or None)
        if rank() == 0:
            self._write(*(torch.cat(x) for x in zip(*[part for part in gathered if len(part[0])], strict=True)))

    def _write(self, *columns: Tensor) -> None:
        if not columns:
            return
        index, order = _first_of_each(columns[0])
        label, probability = columns[1][order], columns[2][order]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.suffix.lower() == ".parquet":
            _write_parquet(self.path, index, label, probability)
        else:
            with atomic_write(self.path, "w") as file:
                csv.writer(file, lineterminator="\n").writerows(_rows(index, label, probability))


def _first_of_each(index: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values in order, and where each stands first; a sampler repeats images to give all ranks as many."""
    order = index.argsort(stable=True)
    values = index[order]
    first = torch.ones_like(values, dtype=torch.bool)
    first[1:] = values[1:] != values[:-1]
    return values[first], order[first]


def _names(classes: int) -> list[str]:
    return ["index", "label", "predicted", *(f"probability_{number}" for number in range(classes))]


def _rows(index: Tensor, label: Tensor, probability: Tensor) -> Iterator[list[Any]]:
    yield _names(probability.shape[1])
    predicted = probability.argmax(1).tolist()
    for i, y, answer, row in zip(index.tolist(), label.tolist(), predicted, probability, strict=True):
        yield [i, "" if y < 0 else y, answer, *(f"{share:.7g}" for share in row.tolist())]


def _write_parquet(path: Path, index: Tensor, label: Tensor, probability: Tensor) -> None:
    from pyarrow import Table, array, parquet

    labels = array([None if y < 0 else y for y in label.tolist()])
    columns = [index.numpy(), labels, probability.argmax(1).numpy(), *probability.T.contiguous().numpy()]
    with atomic_write(path) as file:
        parquet.write_table(Table.from_arrays([array(x) for x in columns], _names(probability.shape[1])), file)
