"""Which layers of a network run, in which order, and where its stages end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_biaskd.networks.named_inputs import Input, run

_NO_STAGE = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d),
)


class Call(NamedTuple):
    """One layer that ran; calls are in the order in which layers finish."""

    name: str
    module: nn.Module
    output: Tensor

    @property
    def size(self) -> torch.Size:
        """Of a map (B, D, H, W) or of tokens (B, N, D); empty for anything else."""
        shape = self.output.shape
        return torch.Size({3: shape[1:2], 4: shape[2:]}.get(len(shape), ()))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a network in eval mode, and restores the mode of each layer afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def trace(model: nn.Module, image: Input) -> tuple[Any, list[Call]]:
    """Runs a network once in eval mode, without changing it."""
    calls: list[Call] = []
    hooks = [
        module.register_forward_hook(
            lambda module, _inputs, output, name=name: (
                calls.append(Call(name, module, output)) if isinstance(output, Tensor) else None
            )
        )
        for name, module in model.named_modules()
    ]
    try:
        with evaluating(model):
            return run(model, image), calls
    finally:
        for hook in hooks:
            hook.remove()


def last_activation(name: str, calls: list[Call]) -> nn.Module | None:
    """The activation at the end of the named layer, if there is one."""
    output = next(call.output for call in reversed(calls) if call.name == name)
    for call in reversed(calls):
        if call.output is output and type(call.module).__module__ == nn.ReLU.__module__:
            return call.module
    return None


def stages(calls: list[Call]) -> list[str]:
    """Names of the layers at the ends of a network's stages, see :class:`~lightning_biaskd.FeatureTap`."""
    sizes: dict[str, set[torch.Size]] = {}  # seen at or below each module
    for call in calls:
        if call.size.numel() > 1:
            for above in _with_ancestors(call.name):
                sizes.setdefault(above, set()).add(call.size)
    ends = {call.name: call.size for call in calls}
    last: dict[torch.Size, str] = {}
    for call in calls:
        if call.size.numel() <= 1 or isinstance(call.module, _NO_STAGE) or ends[call.name] != call.size:
            continue  # the last: a module that serves several stages, of which only the last call can be kept
        # inside a block that reduces the resolution, what comes before that is no stage's end
        if all(ends.get(above) == call.size or len(sizes[above]) > 2 for above in _with_ancestors(call.name)):
            last.pop(call.size, None)
            last[call.size] = call.name
    return list(last.values())


def _with_ancestors(name: str) -> list[str]:
    """A module's name and those of the modules around it, without the network itself."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)] if name else []
