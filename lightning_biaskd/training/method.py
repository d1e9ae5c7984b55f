"""A method and a strategy in a Trainer: their schedules, and what a checkpoint tells of them."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_biaskd.bias import BiasStrategy, Plain
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.training.dynamic_weights import DynamicWeights
from lightning_biaskd.training.fixed_parts import FixedParts
from lightning_biaskd.training.progress import EpochCallback
from lightning_biaskd.training.step import Distillation


class MethodModule(FixedParts, LightningModule):
    """A module that distils: it moves γ and the method's schedules, and its checkpoints name method and strategy.

    Attributes:
        teacher: the frozen network.
        distiller: the method.
        bias: the strategy.
    """

    fixed_parts: ClassVar[tuple[str, ...]] = ("model", "student", "teacher", "distiller", "bias")

    teacher: FrozenTeacher
    distiller: Distiller
    bias: BiasStrategy | Plain

    def register_parts(self, step: Distillation) -> None:
        """Keeps a step past registration, and registers its parts: a checkpoint holds ``model.…``, ``distiller.…``."""
        self.__dict__["distillation"] = step
        self.teacher = step.teacher
        self.distiller = step.distiller
        self.bias = step.bias

    def on_new_epoch(self) -> None:
        """Called before the first batch of every epoch, including in a run that resumes in the middle of one."""
        self.distiller.set_epoch(self.current_epoch)

    def configure_callbacks(self) -> list[Callback]:
        wanted: list[type[Callback]] = [_EpochOfModule]
        if isinstance(self.bias, BiasStrategy) and self.bias.uses_gamma:
            wanted.append(DynamicWeights)
        there: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [kind() for kind in wanted if not any(isinstance(callback, kind) for callback in there)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["method"] = self._method()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("method", self._method())
        if not saved.endswith(f" and {self._strategy()}"):  # the counts of another strategy tell this one nothing
            weights = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("bias.")}
            own = {f"bias.{name}": value for name, value in self.bias.state_dict().items()}
            checkpoint["state_dict"] = {**weights, **own}
        others = checkpoint["state_dict"].keys() ^ self.state_dict().keys()
        if self.strict_loading and others and all(name.startswith("distiller.") for name in others):
            then, now = saved.partition("(")[0], type(self.distiller).__name__
            raise UserError(
                f"the checkpoint's method, {then}, has other layers than this {now}: pass distiller= as in training"
            )
        super().on_load_checkpoint(checkpoint)
        if saved != self._method():
            rank_zero_warn(f"the checkpoint was trained with {saved}; this module distils with {self._method()}")

    def _method(self) -> str:
        return " ".join(f"{self.distiller!r} and {self._strategy()}".split())

    def _strategy(self) -> str:
        return repr(self.bias if isinstance(self.bias, BiasStrategy) else None)


class _EpochOfModule(EpochCallback):
    def on_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cast("MethodModule", pl_module).on_new_epoch()
