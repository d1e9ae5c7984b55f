"""What makes N processes train as one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_biaskd.distillers.base import Distiller
from lightning_biaskd.outputs import Outputs


def world_size() -> int:
    """How many processes train together; 1 where none were launched."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 where none were launched."""
    return dist.get_rank() if world_size() > 1 else 0


def rows_of_its_own(loader: Any, batch_idx: int, rows: int) -> int:
    """How many rows of a batch, from its first, aren't those that a DistributedSampler adds to give all ranks as many.

    Args:
        loader: not shuffled, or not of this kind; then all rows are.
        batch_idx: number of the batch.
        rows: of the batch.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or not loader.batch_size:
        return rows
    own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
    return min(max(own - batch_idx * int(loader.batch_size), 0), rows)


class _Gather(torch.autograd.Function):
    """All ranks' tensors, (N, B, …); backward adds up what all ranks ask of this rank's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = x.new_empty(world_size() * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(parts, x.contiguous())
        return parts.unflatten(0, (world_size(), len(x)))  # type: ignore[no-any-return,no-untyped-call]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank()]


def gather(x: Tensor, views: int = 1) -> Tensor:
    """The tensors (B, …) of all ranks as one (N·B, …), with gradient to each.

    Args:
        x: (B, …), B the same on every rank, as it is under a distributed sampler.
        views: of how many views, in equal parts, the B rows are; the joined rows are then ordered by view, and by rank
            within each.
    """
    if world_size() == 1:
        return x
    parts: Tensor = _Gather.apply(x)
    by_view = parts.reshape(len(parts), views, len(x) // views, *x.shape[1:]).transpose(0, 1)
    return by_view.reshape(-1, *x.shape[1:])


def own_part(joined: Tensor, views: int = 1) -> Tensor:
    """This rank's part (B, …) of what :func:`gather` joined."""
    if world_size() == 1:
        return joined
    by_view = joined.reshape(views, world_size(), -1, *joined.shape[1:])
    return by_view[:, rank()].flatten(0, 1)


def losses_on_joined_batch(
    distiller: Distiller, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Losses (B,) of this rank's samples; a pairwise method compares them with the samples of all ranks.

    So their mean over the ranks, and its gradient, are those of one process on the joined batch.
    """
    if not distiller.pairwise or world_size() == 1:
        return distiller(student, teacher, target, keep)  # type: ignore[no-any-return]
    views = distiller.views
    losses = distiller(
        _joined(student, distiller.layers, views),
        _joined(teacher, distiller.teacher_layers, views),
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
        None if outputs.sample is None else gather(outputs.sample, views),
    )
