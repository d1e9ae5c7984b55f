"""How many processes there are, and which this is."""

import torch.distributed as dist


def world_size() -> int:
    """How many processes train together; 1 where none were launched."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 where none were launched."""
    return dist.get_rank() if world_size() > 1 else 0
