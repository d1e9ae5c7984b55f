"""Published distillation methods, one file each."""

from lightning_biaskd.distillers.base import Distiller, kl_divergence
from lightning_biaskd.distillers.dkd import DKD, dkd_loss
from lightning_biaskd.distillers.kd import KD, kd_loss
from lightning_biaskd.distillers.weighted_sum import WeightedSum

__all__ = ["DKD", "KD", "Distiller", "WeightedSum", "dkd_loss", "kd_loss", "kl_divergence"]
