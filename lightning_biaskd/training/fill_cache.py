"""Computing all of a teacher's outputs before training."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.progress import Progress

from lightning_biaskd.errors import UserError
from lightning_biaskd.teachers.cache import TeacherCache
from lightning_biaskd.training.distillation import DistillationModule
from lightning_biaskd.training.passes import QUIET, TeacherPass


def fill_cache(module: LightningModule, datamodule: LightningDataModule, trainer: Trainer | None = None) -> None:
    """Computes the teacher's outputs for every training image in every view, and stores them in the module's cache.

    Training would do so in its first epochs. A call that was stopped continues where it was.

    Args:
        module: a :class:`~lightning_biaskd.DistillationModule` with a ``teacher_cache``.
        datamodule: the data that it will be trained on.
        trainer: determines devices and precision, which must be that of training unless the teacher has its own; it
            should neither log nor save. ``None`` for the available device, and 32-true.

    Raises:
        UserError: the module has no cache, or the reasons of :meth:`TeacherCache.open`.
    """
    if not isinstance(module, DistillationModule) or module.teacher_cache is None:
        raise UserError("there is no cache to fill: name a folder, --model.teacher_cache runs/cache")
    trainer = trainer or Trainer(devices=1, **QUIET)
    trainer.fit_loop.max_epochs = 0
    module.connect_data(datamodule)
    trainer.fit(_Filler(module, module.teacher_cache), datamodule=datamodule)


class _Filler(TeacherPass):
    """Is fitted for no epoch, so that processes and data are there."""

    def __init__(self, module: DistillationModule, cache: TeacherCache) -> None:
        super().__init__(module, None)
        self.cache = cache

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        # a folder tells its classes once it is read
        store = self.cache.open(self.teacher, data, getattr(data, "num_classes", None))
        with Progress(disable=not self.trainer.is_global_zero) as progress:
            task = progress.add_task("the teacher answers", total=None)
            for done, total in store.fill(self.teacher, data, self.device):
                progress.update(task, completed=done, total=total)
