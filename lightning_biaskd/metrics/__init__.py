"""Metrics of this field, as torchmetrics: exact under DDP, and without a wait for the device in ``update``."""

from lightning_biaskd.metrics.accuracy import CalibrationError, Means, topk_accuracies
from lightning_biaskd.metrics.agreement import Agreement, DistributionGap
from lightning_biaskd.metrics.beyond_teacher import BeyondTeacher, Contingency, mcnemar
from lightning_biaskd.metrics.bias_rate import BiasRate, ConfusedPair, NotOnTop, confused_pairs
from lightning_biaskd.metrics.chosen import ChosenMetrics
from lightning_biaskd.metrics.class_means import ClassMeans
from lightning_biaskd.metrics.detection import DetectionScores
from lightning_biaskd.metrics.segmentation import SegmentationScores

__all__ = [
    "Agreement",
    "BeyondTeacher",
    "BiasRate",
    "CalibrationError",
    "ChosenMetrics",
    "ClassMeans",
    "ConfusedPair",
    "Contingency",
    "DetectionScores",
    "DistributionGap",
    "Means",
    "NotOnTop",
    "SegmentationScores",
    "confused_pairs",
    "mcnemar",
    "topk_accuracies",
]
