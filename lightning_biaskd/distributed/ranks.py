"""The number of processes, and the rank of this one."""

import torch.distributed as dist


def world_size() -> int:
    """The number of processes that train together; 1 if none were launched."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 if none were launched."""
    return dist.get_rank() if world_size() > 1 else 0
