"""Sharding for networks that are too large for one device."""

from __future__ import annotations

from itertools import chain

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


def shard(network: nn.Module, mesh: DeviceMesh, least: int = 1_000_000) -> None:
    """Shards a network's weights over processes with FSDP2, block by block, in place.

    Each process holds its share, and gathers a block's weights while that block computes. A block is the largest module
    around whose children ``least`` parameters or more are shared out; what is smaller stays with the block around it.

    Args:
        network: its parameters must be contiguous.
        mesh: of the processes.
        least: parameters of a block.
    """
    for child in network.children():
        if sum(parameter.numel() for parameter in child.parameters()) >= least:
            shard(child, mesh, least)
    if type(network).forward is not nn.Module.forward:  # a list of modules has none
        fully_shard(network, mesh=mesh, reshard_after_forward=True)  # a teacher has no backward that would do it


def broadcast_from_first(module: nn.Module, mesh: DeviceMesh) -> None:
    """Broadcasts the first process's parameters and buffers to all processes, as DDP does."""
    group = mesh.get_group()
    for tensor in chain(module.parameters(), module.buffers()):
        there = tensor.detach().to(mesh.device_type)
        dist.broadcast(there, dist.get_global_rank(group, 0), group)
        tensor.detach().copy_(there)


def average_gradients(module: nn.Module, mesh: DeviceMesh) -> None:
    """Averages the gradients of parameters that are not sharded, as DDP does."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=mesh.get_group())
            parameter.grad /= mesh.size()
