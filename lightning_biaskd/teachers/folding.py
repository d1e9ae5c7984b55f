"""Folding the batch norms of a network whose weights never change into the convolutions before them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lightning_biaskd.networks.kinds import own_dtype
from lightning_biaskd.networks.named_inputs import Input, converted, copied, leading, run
from lightning_biaskd.networks.outputs import at_least_float32
from lightning_biaskd.networks.tap import FeatureTap

_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2


@torch.no_grad()
def folded(tap: FeatureTap, image: Input) -> FeatureTap:
    """A copy of the network with its batch norms folded, or the network itself where there is nothing to fold.

    Nothing is folded if that moves the logits by more than rounding. This happens where a network uses a convolution's
    output in a way that hooks don't see.
    """
    image = converted(image, own_dtype(tap.model))
    logits = tap(copied(image)).logits  # a network may work in place
    expected = at_least_float32(logits)
    pairs = _pairs(tap.model, image)
    if not pairs:
        return tap
    twin = copy.deepcopy(tap)
    modules: dict[str, Any] = dict(twin.model.named_modules())
    for conv, norm in ((modules[a], modules[b]) for a, b in pairs):
        double = [None if x is None else x.double() for x in (conv.weight, conv.bias, norm.running_mean)]
        double += [None if x is None else x.double() for x in (norm.running_var, norm.weight, norm.bias)]
        w, b, mean, var, scale, shift = double
        weight, bias = fuse_conv_bn_weights(w, b, mean, var, norm.eps, scale, shift)  # type: ignore[arg-type]
        conv.weight = nn.Parameter(weight.to(conv.weight), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(conv.weight), requires_grad=False)
        norm.forward = nn.Identity().forward  # its name and its hooks stay
    error = (twin(copied(image)).logits - expected).abs().max() / expected.abs().max()
    if error > (_TOLERANCE if logits.dtype == expected.dtype else _HALF_TOLERANCE):
        rank_zero_warn(f"folding the teacher's batch norms moved its logits by {error:.1e}, so they aren't folded")
        return tap
    return twin


def _pairs(model: nn.Module, image: Input) -> list[tuple[str, str]]:
    """Names of convolutions and the batch norms that read them, where nothing else reads them and both run once."""
    calls: list[tuple[str, nn.Module, Any, Any]] = []

    def record(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: calls.append((name, module, inputs[0] if inputs else None, output))

    hooks = [module.register_forward_hook(record(name)) for name, module in model.named_modules()]
    try:
        run(model, copied(leading(image, 2)))
    finally:
        for hook in hooks:
            hook.remove()
    runs = [name for name, *_ in calls]
    seen = {id(output) for _, module, _, output in calls if module._forward_hooks}  # by it or a module around it
    made = {
        id(output): name
        for name, module, _, output in calls
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and id(output) not in seen and _own_weight(module)
    }
    pairs = []
    for name, module, read, _ in calls:
        plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and module.running_mean is not None
        conv = made.get(id(read)) if plain and not module._forward_pre_hooks else None
        if conv and runs.count(conv) == runs.count(name) == 1 and sum(call[2] is read for call in calls) == 1:
            pairs.append((conv, name))
    return pairs


def _own_weight(conv: nn.Module) -> bool:
    """Whether the weight is a plain parameter, not one that pruning or a norm of the weight computes."""
    return "weight" in conv._parameters and not conv._forward_pre_hooks
