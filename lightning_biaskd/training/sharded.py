"""Student and teacher that are too large for one device."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.distributed.sharding import average_gradients, broadcast_from_first, shard
from lightning_biaskd.errors import UserError
from lightning_biaskd.teachers.cache import TeacherCache
from lightning_biaskd.teachers.frozen import FrozenTeacher


class ShardedModule(LightningModule):
    """A module whose networks are sharded over the processes when its Trainer uses ``ModelParallelStrategy``."""

    model: nn.Module
    teacher: FrozenTeacher
    teacher_cache: TeacherCache | None
    distiller: Distiller

    def configure_model(self) -> None:
        super().configure_model()
        if self.device_mesh is not None and not isinstance(self.model, FSDPModule):
            self.shard(self.device_mesh["data_parallel"])

    def shard(self, mesh: DeviceMesh) -> None:
        """Shards both networks over the processes, for Lightning's ``ModelParallelStrategy``.

        The teacher then runs unchanged and before the student, as sharded weights can't be folded. Every process holds
        all of what the method learns.
        """
        if self.teacher_cache is not None:
            raise UserError("networks that are spread over processes keep no cache of the teacher: leave it out")
        self.teacher.backend = "plain"
        self.teacher.stream = False
        broadcast_from_first(self.distiller, mesh)
        for network in (self.model, *(member.model for member in self.teacher.members)):
            broadcast_from_first(network, mesh)
            shard(network, mesh)

    def on_after_backward(self) -> None:
        super().on_after_backward()
        if self.device_mesh is not None:
            average_gradients(self.distiller, self.device_mesh["data_parallel"])
