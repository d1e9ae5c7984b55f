"""Knowledge distillation that does not pass the teacher's mistakes on to the student, for PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_biaskd.renamed import find_renamed_modules

if TYPE_CHECKING:
    from lightning_biaskd.bias import BiasLoss, BiasStrategy
    from lightning_biaskd.callbacks import EMA, DynamicWeights
    from lightning_biaskd.distiller import Distiller, Needs
    from lightning_biaskd.distillers import DKD, KD, WeightedSum
    from lightning_biaskd.errors import UserError
    from lightning_biaskd.export import export_student, load_student
    from lightning_biaskd.networks.class_map import ClassMap
    from lightning_biaskd.networks.inputs import InputConversion, InputSpec
    from lightning_biaskd.networks.outputs import Outputs
    from lightning_biaskd.networks.tap import FeatureTap
    from lightning_biaskd.networks.weights import load_weights
    from lightning_biaskd.teachers import EnsembleTeacher, FrozenTeacher, TeacherCache
    from lightning_biaskd.training.classification import ClassificationModule
    from lightning_biaskd.training.detection import DetectionModule
    from lightning_biaskd.training.detection_distillation import DetectionDistillationModule
    from lightning_biaskd.training.distillation import DistillationModule

__version__ = "0.2.0"

# imported when they are first used, so that importing one part loads no other
_PLACES = {
    "bias": ["BiasLoss", "BiasStrategy"],
    "callbacks": ["EMA", "DynamicWeights"],
    "distiller": ["Distiller", "Needs"],
    "distillers": ["DKD", "KD", "WeightedSum"],
    "errors": ["UserError"],
    "export": ["export_student", "load_student"],
    "networks.class_map": ["ClassMap"],
    "networks.inputs": ["InputConversion", "InputSpec"],
    "networks.outputs": ["Outputs"],
    "networks.tap": ["FeatureTap"],
    "networks.weights": ["load_weights"],
    "teachers": ["EnsembleTeacher", "FrozenTeacher", "TeacherCache"],
    "training.classification": ["ClassificationModule"],
    "training.detection": ["DetectionModule"],
    "training.detection_distillation": ["DetectionDistillationModule"],
    "training.distillation": ["DistillationModule"],
}
_PLACE = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "DKD",
    "EMA",
    "KD",
    "BiasLoss",
    "BiasStrategy",
    "ClassMap",
    "ClassificationModule",
    "DetectionDistillationModule",
    "DetectionModule",
    "DistillationModule",
    "Distiller",
    "DynamicWeights",
    "EnsembleTeacher",
    "FeatureTap",
    "FrozenTeacher",
    "InputConversion",
    "InputSpec",
    "Needs",
    "Outputs",
    "TeacherCache",
    "UserError",
    "WeightedSum",
    "export_student",
    "load_student",
    "load_weights",
]

find_renamed_modules()


def __getattr__(name: str) -> Any:
    if name not in _PLACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
