"""The table at the end."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.table import Table

_TITLES = {"val": "On the validation images", "test": "On the test images"}


class ResultTable(Callback):
    """Prints what a test or a validation found, and how student and teacher compare where there is a teacher.

    ================================= ==================================================================================
    row                               logged key (``val/…`` after a validation)
    ================================= ==================================================================================
    top-1 accuracy, top-5 accuracy    ``test/acc1``, ``test/acc5``, and ``test/teacher_acc1``, ``test/teacher_acc5``
    images only it gets right         ``test/student_only``, ``test/teacher_only``; of maps, pixels
    pixel accuracy, mean IoU          of maps: ``test/acc1``, ``test/miou`` and ``test/boundary_miou``
    mean average precision            of boxes: ``test/map``, and ``test/map_50``, ``test/map_75`` at one IoU
    others                            every other number that was logged, under its own name: a metric ``test/NAME`` of
                                      the student beside ``test/teacher_NAME``
    ================================= ==================================================================================

    A validation within a fit prints none.
    """

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _print(trainer, "test")

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            _print(trainer, "val")


_PERCENT = {"acc1": "top-1 accuracy [%]", "acc5": "top-5 accuracy [%]"}
_MAPS = {"acc1": "pixel accuracy [%]", "miou": "mean IoU [%]", "boundary_miou": "mean IoU near boundaries [%]"}
_BOXES = {
    "map": "mean average precision [%]",
    "map_50": "average precision at IoU 0.50 [%]",
    "map_75": "average precision at IoU 0.75 [%]",
}
_COUNTS = ("student_only", "teacher_only", "both", "neither", "gap")


def _print(trainer: Trainer, stage: str) -> None:
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    values = {key.removeprefix(f"{stage}/"): value for key, value in logged.items()}
    if not values:
        return
    taught = any(key.startswith("teacher_") and key != "teacher_only" for key in values)
    networks = {"student": "", "teacher": "teacher_"} if taught else {"network": ""}
    table = Table(title=_TITLES[stage])
    table.add_column()
    for column in (*networks, "gap") if len(networks) == 2 else networks:
        table.add_column(column, justify="right")
    maps = "miou" in values
    names = _MAPS if maps else _BOXES if "map" in values else _PERCENT
    for key, name in names.items():
        if key in values:
            _add(table, name, [100 * values[prefix + key] for prefix in networks.values()], ".2f")
    if {"student_only", "teacher_only"} <= values.keys():
        _add(
            table,
            f"{'pixels' if maps else 'images'} only it gets right",
            [values["student_only"], values["teacher_only"]],
            ".0f",
        )
    taken = {*_COUNTS, *(prefix + key for key in names for prefix in networks.values())}
    for key in [key for key in values if key not in taken]:
        if not (key.startswith("teacher_") and key.removeprefix("teacher_") in values):
            _add(table, key, [values[prefix + key] for prefix in networks.values() if prefix + key in values], ".4g")
    get_console().print(table)  # the progress bar's, so that a bar is not in its way


def _add(table: Table, name: str, numbers: list[float], form: str) -> None:
    gap = [f"{numbers[0] - numbers[1]:+{form}}"] if len(numbers) == 2 else []
    table.add_row(name, *(f"{number:{form}}" for number in numbers), *gap)
