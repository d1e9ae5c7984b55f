"""The random state of all processes, in a form that a checkpoint can store."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lightning_biaskd.distributed.ranks import rank, world_size


def random_states() -> list[dict[str, Any]]:
    """The states of Python's, NumPy's and torch's generators, for each process. Call it on all processes."""
    return of_all_processes(own_random_state())


def of_all_processes(own: Any) -> list[Any]:
    """A plain value from each process. Call it on all processes."""
    values: list[Any] = [own]
    if world_size() > 1:
        values = [None] * world_size()
        dist.all_gather_object(values, own)
    return values


def restore_random_state(states: list[dict[str, Any]]) -> None:
    """Sets this process's state, if there were as many processes when the states were taken."""
    if len(states) == world_size():
        _restore(states[rank()])


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Restores this process's random state at the end."""
    own = own_random_state()
    try:
        yield
    finally:
        _restore(own)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator temporarily, and restores its state at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def own_random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators in this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # what others draw from
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(own: dict[str, Any]) -> None:
    version, keys, gauss = own["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = own["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(own["torch"].cpu())
    if len(own["cuda"]) == torch.cuda.device_count() and own["cuda"]:
        torch.cuda.set_rng_state_all([state.cpu() for state in own["cuda"]])
