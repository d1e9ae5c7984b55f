"""What a step of a network costs, operation by operation, without running it: arithmetic, memory traffic, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass
class Costs:
    """Of one step.

    Attributes:
        flops: floating-point operations of convolutions, matrix products and attention; a multiply-add is two.
        traffic: bytes that operations read and write, none of them fused.
        saved: bytes that the forward pass keeps for the backward pass.
        operations: flops and bytes of each operation.
    """

    flops: float = 0
    traffic: float = 0
    saved: float = 0
    operations: list[tuple[float, float]] = field(default_factory=list)

    def seconds(self, flops: float, bandwidth: float, least: float) -> float:
        """Each operation takes as long as its arithmetic, its memory traffic or its launch, whichever is longest."""
        return sum(max(work / flops, moved / bandwidth, least) for work, moved in self.operations)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.costs = Costs()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(
            returned.alias_info is not None and not returned.alias_info.is_write for returned in func._schema.returns
        ):
            return out  # a view
        flops = _flops(func, args, kwargs or {}, out)
        moved = sum(x.numel() * x.itemsize for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
        self.costs.flops += flops
        self.costs.traffic += moved
        self.costs.operations.append((flops, moved))
        return out


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    if func is torch.ops.aten.convolution_backward.default:  # torch's own count leaves out groups
        gradient, _, weight = args[:3]
        return float(2 * gradient.numel() * weight[0].numel() * sum(args[-1][:2]))
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else float(count(*args, **kwargs, out_val=out))


def costs(build: Callable[[], nn.Module], batch: int, train: bool, size: int = 224) -> Costs:
    """Of a forward pass in bf16, and of the backward pass if ``train``."""
    with torch.device("meta"):
        network = build().to(torch.bfloat16).train(train)
        image, target = torch.empty(batch, 3, size, size, dtype=torch.bfloat16), torch.empty(batch, dtype=torch.int64)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with (
        _Counter() as counter,
        torch.set_grad_enabled(train),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        logits = network(image)
        if train:
            F.cross_entropy(logits, target).backward()
    counter.costs.saved = sum(kept.values())
    return counter.costs


def parameters(build: Callable[[], nn.Module]) -> int:
    """How many a network has."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())
