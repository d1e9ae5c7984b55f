"""Lightning's summary of a model, with the frozen teacher in it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import LayerSummary

from lightning_biaskd.teachers.frozen import FrozenTeacher


class DistillationSummary(RichModelSummary):
    """Lightning's summary that also counts a frozen teacher, whose parameters no optimizer or checkpoint sees.

    Args:
        max_depth: levels of submodules to list.

    The totals below the table are those of the module that is trained, without the teacher.
    """

    def __init__(self, max_depth: int = 1) -> None:
        super().__init__(max_depth)

    def _summary(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        summary: Any = super()._summary(trainer, pl_module)
        for name, layer in getattr(summary, "_layer_summary", {}).items():
            if isinstance(layer._module, FrozenTeacher):
                summary._layer_summary[name] = _FrozenLayer(layer._module)
        return summary


class _FrozenLayer(LayerSummary):
    @property
    def layer_type(self) -> str:
        return f"{type(self._module).__name__} ({type(self._module.model).__name__}, frozen)"

    @property
    def num_parameters(self) -> int:
        teacher: Any = self._module
        return sum(parameter.numel() for parameter in teacher.model.parameters())

    @property
    def training(self) -> bool:
        return False
