"""The random state of all processes, in a form that a checkpoint can hold."""

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
    """What Python, NumPy and torch would draw from next, for each process; to be called on all of them."""
    own = _own_state()
    states: list[Any] = [own]
    if world_size() > 1:
        states = [None] * world_size()
        dist.all_gather_object(states, own)
    return states


def restore_random_state(states: list[dict[str, Any]]) -> None:
    """Sets this process's state, if there were as many processes when the states were taken."""
    if len(states) == world_size():
        _restore(states[rank()])


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Puts this process's state back at the end, whatever was drawn."""
    own = _own_state()
    try:
        yield
    finally:
        _restore(own)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Lets torch draw on the CPU from a seed of its own, and then go on where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _own_state() -> dict[str, Any]:
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
