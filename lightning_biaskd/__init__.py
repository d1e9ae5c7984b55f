"""Knowledge distillation that does not hand the teacher's mistakes to the student, for PyTorch Lightning."""

from lightning_biaskd.bias import BiasLoss, BiasStrategy
from lightning_biaskd.callbacks import EMA, DynamicWeights
from lightning_biaskd.classes import ClassMap
from lightning_biaskd.classification import ClassificationModule
from lightning_biaskd.distillers import DKD, KD, Distiller, WeightedSum
from lightning_biaskd.errors import UserError
from lightning_biaskd.export import export_student, load_student
from lightning_biaskd.inputs import InputConversion, InputSpec
from lightning_biaskd.models import load_weights
from lightning_biaskd.module import DistillationModule
from lightning_biaskd.outputs import Outputs
from lightning_biaskd.tap import FeatureTap
from lightning_biaskd.teacher import FrozenTeacher
from lightning_biaskd.teacher_cache import TeacherCache

__version__ = "0.1.0"

__all__ = [
    "DKD",
    "EMA",
    "KD",
    "BiasLoss",
    "BiasStrategy",
    "ClassMap",
    "ClassificationModule",
    "DistillationModule",
    "Distiller",
    "DynamicWeights",
    "FeatureTap",
    "FrozenTeacher",
    "InputConversion",
    "InputSpec",
    "Outputs",
    "TeacherCache",
    "UserError",
    "WeightedSum",
    "export_student",
    "load_student",
    "load_weights",
]
