"""Rows that a sampler adds to give all processes as many."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DistributedSampler


def unpadded_rows(loader: Any, batch_idx: int, rows: int) -> int:
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
