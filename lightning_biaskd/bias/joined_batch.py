"""Methods that compare the samples of a batch, on the samples of all processes."""

from __future__ import annotations

from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.distributed.gather import gather, own_part
from lightning_biaskd.distributed.ranks import world_size
from lightning_biaskd.networks.outputs import Outputs


def losses_on_joined_batch(
    distiller: Distiller, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Losses (B,) of this rank's samples; a pairwise method compares them with the samples of all ranks.

    Their mean over the ranks and its gradient are then those of one process on the joined batch.
    """
    needs = distiller.needs
    if not needs.pairwise or world_size() == 1:
        return distiller(student, teacher, target, keep)
    views = needs.views
    losses = distiller(
        _joined(student, needs.layers, views),
        _joined(teacher, needs.teacher_layers, views),
        gather(target, views),
        None if keep is None else gather(keep, views),
    )
    return own_part(losses, views)


def _joined(outputs: Outputs, layers: tuple[str, ...], views: int) -> Outputs:
    return Outputs(
        gather(outputs.logits, views),
        {name: gather(outputs.features[name], views) for name in layers},
        None if outputs.embedding is None else gather(outputs.embedding, views),
        outputs.head,
        None if outputs.index is None else gather(outputs.index, views),
    )
