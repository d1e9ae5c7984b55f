"""Lightning callbacks, one file each."""

from lightning_biaskd.callbacks.dynamic_weights import DynamicWeights
from lightning_biaskd.callbacks.ema import EMA
from lightning_biaskd.callbacks.result_table import ResultTable

__all__ = ["EMA", "DynamicWeights", "ResultTable"]
