"""``validate``, ``test`` and ``predict`` on the command line: one table or one file, and no new run folder."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_biaskd.callbacks import PredictionWriter
from lightning_biaskd.errors import UserError

EVALUATIONS = ("validate", "test", "predict")
_REMEDIES = {
    "validate": "there is nothing to validate: the data have no validation images (val_split is 0), or "
    "limit_val_batches is 0; run test, or give --data.val_split 0.1",
    "test": "there is nothing to test: the data have no test images, or limit_test_batches is 0",
    "predict": "there is nothing to predict: the data have no images to predict, or limit_predict_batches is 0",
}


def add_output(parser: ArgumentParser) -> None:
    """Adds the argument of ``predict``."""
    parser.add_argument(
        "--output",
        type=str | None,
        default="predictions.csv",
        help="File for index, label and probabilities of each image: .csv, or .parquet; null writes none.",
    )


def prepare(trainer: Trainer, command: str, arguments: dict[str, Any], output: str | None) -> dict[str, Any]:
    """Lets an evaluation print one table or write one file, and leave no run folder.

    Args:
        trainer: is left without loggers.
        command: ``fit`` and others are left alone.
        arguments: of the Trainer's method.
        output: of ``predict``.

    Returns:
        The arguments to call the method with.
    """
    if command not in EVALUATIONS:
        return arguments
    trainer.loggers = []
    if command != "predict":
        return {**arguments, "verbose": False}  # ResultTable prints
    if output is None:
        return arguments
    trainer.callbacks.append(PredictionWriter(output))  # type: ignore[attr-defined]
    return {**arguments, "return_predictions": False}


def finish(trainer: Trainer, command: str, output: str | None) -> None:
    """Says where the predictions are.

    Raises:
        UserError: there were no batches.
    """
    batches = {"validate": "num_val_batches", "test": "num_test_batches", "predict": "num_predict_batches"}
    if not sum(getattr(trainer, batches[command])):
        raise UserError(_REMEDIES[command])
    if command == "predict" and output is not None:
        rank_zero_info(f"predictions are in {output!r}")
