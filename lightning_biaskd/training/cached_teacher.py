"""A teacher whose outputs come from a cache during a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from lightning.pytorch.trainer.states import TrainerFn

from lightning_biaskd.data.batch import Batch
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.teachers.cache import TeacherCache
from lightning_biaskd.teachers.ensemble_cache import EnsembleCache
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.teachers.store import OpenCache
from lightning_biaskd.training.method import MethodModule


class CachedTeacherModule(MethodModule):
    """A module that opens its teacher's cache for a fit, and runs the teacher everywhere else.

    Attributes:
        teacher: the frozen teacher.
        teacher_cache: the settings of its cache, ``None`` for none.
        open_cache: the opened cache, during a fit.
        num_classes: C, the number of classes of the data.
    """

    teacher: FrozenTeacher
    teacher_cache: TeacherCache | None
    open_cache: OpenCache | EnsembleCache | None = None
    num_classes: int | None

    def teacher_outputs_of(self, batch: Sequence[Any]) -> Outputs:
        """The teacher's outputs for a batch; during a fit from its cache, if it has one for such a batch.

        A teacher with a CUDA stream may still be at work on them: call ``self.teacher.join(device)`` before using them.
        """
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING  # what it was opened for
        if fitting and self.open_cache is not None and getattr(batch, "view", None) is not None:
            return self.open_cache.outputs_of(cast("Batch", batch), self.teacher)
        return self.teacher.queue(batch[0])

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.teacher_cache is not None:
            datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
            self.open_cache = self.teacher_cache.open(self.teacher, datamodule, self.num_classes)

    def on_new_epoch(self) -> None:
        super().on_new_epoch()
        if self.open_cache is not None and self.device.type == "cuda":
            self.open_cache.keep_on(self.device, self.trainer.datamodule)  # type: ignore[attr-defined]

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        self.open_cache = None
