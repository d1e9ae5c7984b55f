"""Work that a GPU may overlap with other work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def on_side_stream(device: torch.device) -> Iterator[None]:
    """Queues the work inside on a second stream of the GPU, after everything queued so far.

    Call :func:`join_side_stream` before using the results. The next side-stream work waits for their last use, so that
    the memory they are in can be reused.
    """
    side = _side_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        yield


def join_side_stream(device: torch.device) -> None:
    """Makes work that is queued from now on wait for the side stream."""
    torch.cuda.current_stream(device).wait_stream(_side_stream(device))
