"""Lightning callbacks, one file each."""

from lightning_biaskd.callbacks.bias_monitor import BiasMonitor
from lightning_biaskd.callbacks.curve_plot import CurvePlot
from lightning_biaskd.callbacks.ema import EMA
from lightning_biaskd.callbacks.history import EpochPicture, History
from lightning_biaskd.callbacks.model_summary import DistillationSummary
from lightning_biaskd.callbacks.nan_guard import NaNGuard
from lightning_biaskd.callbacks.prediction_writer import PredictionWriter
from lightning_biaskd.callbacks.progress_bar import DistillationProgressBar
from lightning_biaskd.callbacks.result_table import ResultTable
from lightning_biaskd.training.dynamic_weights import DynamicWeights

__all__ = [
    "EMA",
    "BiasMonitor",
    "CurvePlot",
    "DistillationProgressBar",
    "DistillationSummary",
    "DynamicWeights",
    "EpochPicture",
    "History",
    "NaNGuard",
    "PredictionWriter",
    "ResultTable",
]
