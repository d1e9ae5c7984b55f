"""Published distillation methods, one file each."""

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.distillers.abkd import ABKD, abkd_loss
from lightning_biaskd.distillers.at import AT, at_loss
from lightning_biaskd.distillers.cat_kd import CATKD, cat_kd_loss, class_activation_maps
from lightning_biaskd.distillers.cc import CC, cc_loss
from lightning_biaskd.distillers.crd import CRD, crd_loss
from lightning_biaskd.distillers.ctkd import CTKD, ctkd_loss
from lightning_biaskd.distillers.cwd import CWD, cwd_loss
from lightning_biaskd.distillers.diffkd import DiffKD, diffkd_loss
from lightning_biaskd.distillers.dist import DIST, dist_loss
from lightning_biaskd.distillers.distillation_token import DistillationToken
from lightning_biaskd.distillers.dkd import DKD, dkd_loss
from lightning_biaskd.distillers.fitnet import FitNet, hint_loss
from lightning_biaskd.distillers.hard import Hard, hard_loss
from lightning_biaskd.distillers.itrd import ITRD, correlation_loss, mutual_loss
from lightning_biaskd.distillers.kd import KD, kd_loss
from lightning_biaskd.distillers.kdsvd import KDSVD, kdsvd_loss
from lightning_biaskd.distillers.logit_standardization import LogitStandardization, standardize
from lightning_biaskd.distillers.luminet import LumiNet, luminet_loss, perception
from lightning_biaskd.distillers.mgd import MGD, mgd_loss
from lightning_biaskd.distillers.mlkd import MLKD, mlkd_loss
from lightning_biaskd.distillers.nkd import NKD, nkd_loss
from lightning_biaskd.distillers.norm import NORM, norm_loss
from lightning_biaskd.distillers.norm_kd import NormKD, norm_kd_loss
from lightning_biaskd.distillers.nst import NST, nst_loss
from lightning_biaskd.distillers.ofa import OFA, ofa_loss
from lightning_biaskd.distillers.ofd import OFD, ofd_loss
from lightning_biaskd.distillers.pkd import PKD, pkd_loss
from lightning_biaskd.distillers.pkt import PKT, pkt_loss
from lightning_biaskd.distillers.pld import PLD, pld_loss
from lightning_biaskd.distillers.rc import RC, rc_loss
from lightning_biaskd.distillers.review_kd import ReviewKD, review_kd_loss
from lightning_biaskd.distillers.rkd import RKD, rkd_loss
from lightning_biaskd.distillers.rld import RLD, rld_loss
from lightning_biaskd.distillers.sdd import SDD, cell_logits
from lightning_biaskd.distillers.simkd import SimKD, simkd_loss
from lightning_biaskd.distillers.sld import SLD, sld_loss
from lightning_biaskd.distillers.sp import SP, sp_loss
from lightning_biaskd.distillers.srd import SRD, srd_loss
from lightning_biaskd.distillers.teacher_free import (
    LabelSmoothing,
    TeacherFree,
    label_smoothing_loss,
    teacher_free_loss,
)
from lightning_biaskd.distillers.tekap import TeKAP, tekap_loss
from lightning_biaskd.distillers.ttm import TTM, WTTM, ttm_loss, wttm_loss
from lightning_biaskd.distillers.vid import VID, vid_loss
from lightning_biaskd.distillers.vkd import VkD, vkd_loss
from lightning_biaskd.distillers.weighted_sum import WeightedSum
from lightning_biaskd.distillers.wkd import WKD, class_distances, wkd_loss
from lightning_biaskd.distillers.wkd_feature import WKDFeature, wkd_feature_loss
from lightning_biaskd.distillers.wsld import WSLD, wsld_loss
from lightning_biaskd.features.base import FeatureDistiller
from lightning_biaskd.logits import kl_divergence, without_label

__all__ = [
    "ABKD",
    "AT",
    "CATKD",
    "CC",
    "CRD",
    "CTKD",
    "CWD",
    "DIST",
    "DKD",
    "ITRD",
    "KD",
    "KDSVD",
    "MGD",
    "MLKD",
    "NKD",
    "NORM",
    "NST",
    "OFA",
    "OFD",
    "PKD",
    "PKT",
    "PLD",
    "RC",
    "RKD",
    "RLD",
    "SDD",
    "SLD",
    "SP",
    "SRD",
    "TTM",
    "VID",
    "WKD",
    "WSLD",
    "WTTM",
    "DiffKD",
    "DistillationToken",
    "Distiller",
    "FeatureDistiller",
    "FitNet",
    "Hard",
    "LabelSmoothing",
    "LogitStandardization",
    "LumiNet",
    "NormKD",
    "ReviewKD",
    "SimKD",
    "TeKAP",
    "TeacherFree",
    "VkD",
    "WKDFeature",
    "WeightedSum",
    "abkd_loss",
    "at_loss",
    "cat_kd_loss",
    "cc_loss",
    "cell_logits",
    "class_activation_maps",
    "class_distances",
    "correlation_loss",
    "crd_loss",
    "ctkd_loss",
    "cwd_loss",
    "diffkd_loss",
    "dist_loss",
    "dkd_loss",
    "hard_loss",
    "hint_loss",
    "kd_loss",
    "kdsvd_loss",
    "kl_divergence",
    "label_smoothing_loss",
    "luminet_loss",
    "mgd_loss",
    "mlkd_loss",
    "mutual_loss",
    "nkd_loss",
    "norm_kd_loss",
    "norm_loss",
    "nst_loss",
    "ofa_loss",
    "ofd_loss",
    "perception",
    "pkd_loss",
    "pkt_loss",
    "pld_loss",
    "rc_loss",
    "review_kd_loss",
    "rkd_loss",
    "rld_loss",
    "simkd_loss",
    "sld_loss",
    "sp_loss",
    "srd_loss",
    "standardize",
    "teacher_free_loss",
    "tekap_loss",
    "ttm_loss",
    "vid_loss",
    "vkd_loss",
    "without_label",
    "wkd_feature_loss",
    "wkd_loss",
    "wsld_loss",
    "wttm_loss",
]
