"""The table at the end."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table


class ResultTable(Callback):
    """Prints the accuracies after a test, and how student and teacher compare where there is a teacher."""

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {key.removeprefix("test/"): value.item() for key, value in trainer.callback_metrics.items()}
        networks = {"student": "", "teacher": "teacher_"} if "student_only" in values else {"network": ""}
        table = Table(title="On the test set")
        table.add_column()
        for column in (*networks, "gap") if len(networks) == 2 else networks:
            table.add_column(column, justify="right")
        for name, key in (("top-1 accuracy [%]", "acc1"), ("top-5 accuracy [%]", "acc5")):
            if key in values:
                _add(table, name, [100 * values[prefix + key] for prefix in networks.values()], ".2f")
        if len(networks) == 2:
            _add(table, "images only it gets right", [values["student_only"], values["teacher_only"]], ".0f")
        Console().print(table)


def _add(table: Table, name: str, numbers: list[float], form: str) -> None:
    gap = [f"{numbers[0] - numbers[1]:+{form}}"] if len(numbers) == 2 else []
    table.add_row(name, *(f"{number:{form}}" for number in numbers), *gap)
