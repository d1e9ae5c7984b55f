"""Networks that are too large for one device."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


def shard(network: nn.Module, mesh: DeviceMesh, least: int = 1_000_000) -> None:
    """Spreads a network's weights over processes by FSDP2, block by block, in place.

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
    fully_shard(network, mesh=mesh, reshard_after_forward=True)  # a teacher has no backward that would do it
