"""Joins the tensors of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_biaskd.distributed.ranks import rank, world_size


class _Gather(torch.autograd.Function):
    """All ranks' tensors, (N, B, …); the backward pass sums the gradients of all ranks for this rank's tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = x.new_empty(world_size() * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(parts, x.contiguous())
        return parts.unflatten(0, (world_size(), len(x)))  # type: ignore[no-any-return,no-untyped-call]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        summed = grad.clone(memory_format=torch.contiguous_format)  # autograd may use the same tensor elsewhere
        dist.all_reduce(summed)
        return summed[rank()]


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


def total(x: Tensor) -> Tensor:
    """The sum of the tensors of all ranks, with gradient to each."""
    return gather(x[None]).sum(0)


def own_part(joined: Tensor, views: int = 1) -> Tensor:
    """This rank's part (B, …) of what :func:`gather` joined."""
    if world_size() == 1:
        return joined
    by_view = joined.reshape(views, world_size(), -1, *joined.shape[1:])
    return by_view[:, rank()].flatten(0, 1)
