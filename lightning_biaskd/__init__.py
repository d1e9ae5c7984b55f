"""Knowledge distillation that does not hand the teacher's mistakes to the student, for PyTorch Lightning."""

from lightning_biaskd.bias import BiasLoss, BiasStrategy
from lightning_biaskd.callbacks import DynamicWeights
from lightning_biaskd.classification import ClassificationModule
from lightning_biaskd.distillers import DKD, KD, Distiller, WeightedSum
from lightning_biaskd.errors import UserError
from lightning_biaskd.models import load_weights
from lightning_biaskd.module import DistillationModule
from lightning_biaskd.outputs import Outputs
from lightning_biaskd.tap import FeatureTap
from lightning_biaskd.teacher import FrozenTeacher

__version__ = "0.1.0"

__all__ = [
    "DKD",
    "KD",
    "BiasLoss",
    "BiasStrategy",
    "ClassificationModule",
    "DistillationModule",
    "Distiller",
    "DynamicWeights",
    "FeatureTap",
    "FrozenTeacher",
    "Outputs",
    "UserError",
    "WeightedSum",
    "load_weights",
]
