"""Published distillation methods, one file each."""

from lightning_biaskd.distillers.base import Distiller, kl_divergence, without_label
from lightning_biaskd.distillers.dist import DIST, dist_loss
from lightning_biaskd.distillers.dkd import DKD, dkd_loss
from lightning_biaskd.distillers.kd import KD, kd_loss
from lightning_biaskd.distillers.logit_standardization import LogitStandardization, standardize
from lightning_biaskd.distillers.nkd import NKD, nkd_loss
from lightning_biaskd.distillers.norm_kd import NormKD, norm_kd_loss
from lightning_biaskd.distillers.teacher_free import (
    LabelSmoothing,
    TeacherFree,
    label_smoothing_loss,
    teacher_free_loss,
)
from lightning_biaskd.distillers.ttm import TTM, WTTM, ttm_loss, wttm_loss
from lightning_biaskd.distillers.weighted_sum import WeightedSum
from lightning_biaskd.distillers.wsld import WSLD, wsld_loss

__all__ = [
    "DIST",
    "DKD",
    "KD",
    "NKD",
    "TTM",
    "WSLD",
    "WTTM",
    "Distiller",
    "LabelSmoothing",
    "LogitStandardization",
    "NormKD",
    "TeacherFree",
    "WeightedSum",
    "dist_loss",
    "dkd_loss",
    "kd_loss",
    "kl_divergence",
    "label_smoothing_loss",
    "nkd_loss",
    "norm_kd_loss",
    "standardize",
    "teacher_free_loss",
    "ttm_loss",
    "without_label",
    "wsld_loss",
    "wttm_loss",
]
