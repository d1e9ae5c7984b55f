"""What kind of network it is: code, a captured graph, or a wrapper around another network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from lightning_biaskd.errors import UserError


def unwrapped(network: Any) -> nn.Module:
    """The network inside a wrapper of ``torch.compile``, ``DataParallel`` or DDP, or of an exported program.

    Raises:
        UserError: it is no network, or some of its parameters have no values.
    """
    while True:
        if isinstance(network, torch.export.ExportedProgram):
            network = network.module()
        elif isinstance(network, DataParallel | DistributedDataParallel):
            network = network.module
        elif isinstance(network, nn.Module) and "_orig_mod" in network._modules:
            network = network._orig_mod
        else:
            break
    if not isinstance(network, nn.Module):
        raise UserError(f"a network is an nn.Module, and this is {network!r:.60}: build it, or wrap it in one")
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise UserError(
                f"'{name}' of {type(network).__name__} has no values yet: run the network once on some images (lazy "
                "layers), or build it on a real device, and load its weights"
            )
    return network


def is_graph(network: nn.Module) -> bool:
    """Whether the network is, or contains, TorchScript or an exported program, whose layers can't be reached."""
    return is_exported(network) or any(isinstance(module, torch.jit.ScriptModule) for module in network.modules())


def is_exported(network: nn.Module) -> bool:
    """Whether the network is, or contains, an exported program, which stays in the mode in which it was captured."""
    # torch replaces the method by one that raises
    return any("train" in vars(module) for module in network.modules() if isinstance(module, GraphModule))


def own_dtype(network: nn.Module) -> torch.dtype | None:
    """The type of the first floating-point parameter or buffer, ``None`` for a network without any."""
    tensors = (*network.parameters(), *network.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)


def graph_constants(network: nn.Module) -> list[Any]:
    """The operations and constant tensors of TorchScript in a network: a frozen graph has its weights there alone."""
    graphs = [module for module in network.modules() if isinstance(module, torch.jit.ScriptModule)]
    nodes = [node for module in graphs[:1] for node in module.inlined_graph.nodes()]
    tensors = [node.t("value") for node in nodes if "value" in node.attributeNames() and node.kindOf("value") == "t"]
    return [*(node.kind() for node in nodes), *tensors]
