"""The paper: partition, rectification, schedule, and the strategy that joins them."""

from lightning_biaskd.bias.loss import BiasLoss
from lightning_biaskd.bias.partition import partition
from lightning_biaskd.bias.plain import Plain
from lightning_biaskd.bias.rectify import rectify, rectify_logits
from lightning_biaskd.bias.schedule import constant, cosine, linear, reversed_cosine, step
from lightning_biaskd.bias.strategy import BiasStrategy

__all__ = [
    "BiasLoss",
    "BiasStrategy",
    "Plain",
    "constant",
    "cosine",
    "linear",
    "partition",
    "rectify",
    "rectify_logits",
    "reversed_cosine",
    "step",
]
