"""What a network may do while it is built as an untrusted card says: no connections, and no more than its weights."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from lightning_biaskd.errors import UserError

_TIMES = 4  # a network may build parts that it replaces
_SPARE = 10_000_000  # such as a classifier of 1000 classes
_SPARE_TENSORS = 1000


class Size(NamedTuple):
    """Of a network's weights."""

    tensors: float
    numbers: float

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> Size:
        """The size of a state dict."""
        return cls(len(state), sum(value.numel() for value in state.values()))


@contextmanager
def confined(size: Size) -> Iterator[None]:
    """Lets this thread open no connection, and build no network that is much larger than ``size``.

    Raises:
        UserError: the code inside tries to.
    """
    tensors = numbers = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, numbers
        if threading.get_ident() == thread and parameter is not None:
            tensors, numbers = tensors + 1, numbers + (0 if is_lazy(parameter) else parameter.numel())
            if tensors > _TIMES * size.tensors + _SPARE_TENSORS or numbers > _TIMES * size.numbers + _SPARE:
                raise UserError("the card describes a network that is far larger than its weights: export it again")

    def refused(original: Any) -> Any:
        def connect(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                raise UserError(
                    "the card's network wants to fetch something, which it may not: if you trust where the card comes "
                    "from, say trusted=True, or build the network and hand it over as model"
                )
            return original(*args, **kwargs)

        return connect

    thread = threading.get_ident()
    hook = register_module_parameter_registration_hook(count)
    places: list[tuple[Any, str]] = [(socket, "getaddrinfo"), (socket.socket, "connect"), (socket.socket, "connect_ex")]
    originals = [getattr(place, name) for place, name in places]
    try:
        for (place, name), original in zip(places, originals, strict=True):
            setattr(place, name, refused(original))
        yield
    finally:
        hook.remove()
        for (place, name), original in zip(places, originals, strict=True):
            setattr(place, name, original)
