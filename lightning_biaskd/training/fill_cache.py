"""Computing all of a teacher's answers before training."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.progress import Progress
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.training.distillation import DistillationModule
from lightning_biaskd.training.passes import QUIET


def fill_cache(module: LightningModule, datamodule: LightningDataModule, trainer: Trainer | None = None) -> None:
    """Computes what the teacher says of every training image in every view, and puts it into the module's cache.

    Training would do so as it goes; this does it at once, without training. It goes on where it was stopped.

    Args:
        module: a :class:`~lightning_biaskd.DistillationModule` with a ``teacher_cache``.
        datamodule: the data that it will be trained on.
        trainer: gives devices and precision, which is to be that of training unless the teacher has its own; it should
            neither log nor save. ``None`` for what there is, and 32-true.

    Raises:
        UserError: the module has no cache; or as :meth:`TeacherCache.open` says.
    """
    if not isinstance(module, DistillationModule) or module.teacher_cache is None:
        raise UserError("there is no cache to fill: name a folder, --model.teacher_cache runs/cache")
    trainer = trainer or Trainer(devices=1, **QUIET)
    trainer.fit_loop.max_epochs = 0
    trainer.fit(_Filler(module), datamodule=datamodule)


class _Filler(LightningModule):
    """Is fitted for no epoch, so that processes and data are there."""

    def __init__(self, module: DistillationModule) -> None:
        super().__init__()
        self.teacher = module.teacher
        self.cache = module.teacher_cache
        self.distil = [module]  # in a list, so that it isn't moved or saved
        self.anchor = nn.Parameter(torch.zeros(1))  # DDP refuses a module without parameters

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.anchor], lr=0.0)  # never stepped; without one Lightning would warn

    def training_step(self, *_: object) -> None:
        """Never taken."""

    validation_step = training_step

    def ask(self, image: Tensor) -> Outputs:
        """The teacher's outputs as in a step, in the Trainer's precision."""
        with self.trainer.precision_plugin.forward_context():
            return self.teacher(image)  # type: ignore[no-any-return]

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.distil[0].connect_data(data)
        assert self.cache is not None
        self.cache.open(self.teacher, data, getattr(data, "num_classes", None))
        with Progress(disable=not self.trainer.is_global_zero) as progress:
            task = progress.add_task("the teacher answers", total=None)
            for done, total in self.cache.fill(self.ask, data, self.device):
                progress.update(task, completed=done, total=total)
