"""Rows that a sampler repeats so that all processes have equally many."""

from __future__ import annotations

from typing import Any

from torch.utils._pytree import tree_flatten
from torch.utils.data import DistributedSampler


def unpadded_rows(loaders: Any, batch_idx: int, rows: int) -> int:
    """Number of leading rows of a batch that are not sampler padding.

    A DistributedSampler repeats the first images at the end, so that all processes have equally many.

    Args:
        loaders: one loader, or a list, tuple, dict or ``CombinedLoader`` that holds it.
        batch_idx: number of the batch in its loader.
        rows: of the batch.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(range(5), 3, sampler=DistributedSampler(range(5), 2, rank=1, shuffle=False))
        >>> unpadded_rows({"val": [loader]}, batch_idx=0, rows=3)
        2
    """
    (loader,) = flattened(loaders)
    batches = getattr(loader, "batch_sampler", None)
    sampler, size = getattr(batches, "sampler", None), getattr(batches, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or not size:
        return rows
    own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
    return min(max(own - batch_idx * int(size), 0), rows)


def flattened(loaders: Any) -> list[Any]:
    """All loaders out of Lightning's containers, in the order that ``dataloader_idx`` counts."""
    leaves: list[Any] = tree_flatten(getattr(loaders, "iterables", loaders))[0]  # a CombinedLoader holds iterables
    if leaves == [loaders]:
        return leaves
    return [loader for leaf in leaves for loader in flattened(leaf)]
