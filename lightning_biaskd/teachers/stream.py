"""Work that a GPU may do beside other work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Queues what is done inside on a second stream of the GPU, after all that is queued by now.

    Before its results are used, the first stream has to :func:`join`. What the second one allocates can then be freed
    at any time: whoever comes beside next waits for its last use.
    """
    side = _side_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        yield


def join(device: torch.device) -> None:
    """Lets what is queued from now on wait for what was queued :func:`beside`."""
    torch.cuda.current_stream(device).wait_stream(_side_stream(device))
