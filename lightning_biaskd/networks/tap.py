"""Reading the features of any network, without editing it."""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.named_inputs import Input, leading, run
from lightning_biaskd.networks.outputs import Outputs, logits_of
from lightning_biaskd.networks.trace import Call, last_activation, stages, trace


class FeatureTap:
    """Runs a network and keeps the outputs of the named layers. The network itself is not edited.

    A layer is named as in ``model.named_modules()``, or counted from the end: ``"-1"`` is the network's last stage,
    ``"-2"`` the one before. A stage consists of the layers at one resolution, and its feature is the output of the last
    of them; pooling layers and maps of a single pixel don't count. So ``"-3", "-2", "-1"`` are ``layer1``, ``layer2``,
    ``layer3`` of a CIFAR ResNet and ``layer2``, ``layer3``, ``layer4`` of torchvision's. ``:pre`` after either takes
    the input of the activation at the layer's end, if there is one.

    Stages, ``:pre`` and the embedding are found by running the network once in eval mode, on the first images. Call the
    tap once before you compile it.

    Args:
        model: any network.
        layers: names of layers. Without layers and embedding, no hook is set and nothing is computed.
        embedding: whether to return the classifier (the layer whose output is the logits) and its input. If a network
            returns :class:`Outputs` with both, those are used.

    Raises:
        UserError: a layer does not exist (the line lists near names) or does not run, the network has fewer stages, or
            no layer of it gives the logits.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        >>> outputs = FeatureTap(net, ["0", "-1"], embedding=True)(torch.zeros(5, 1, 4, 4))
        >>> outputs.features["0"].shape, outputs.features["-1"].shape, outputs.embedding.shape
        (torch.Size([5, 4, 2, 2]), torch.Size([5, 4, 2, 2]), torch.Size([5, 16]))
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] = (), embedding: bool = False) -> None:
        self.model = model
        self.layers = tuple(layers)
        self.embedding = embedding
        self._seen: dict[str, Tensor] = {}
        self._read: dict[str, Tensor] = {}
        self._head: nn.Module | None = None
        self._names = {layer: layer for layer in self.layers}  # of the modules, once stages are found
        self._shared: set[str] = set()  # modules that run several times
        self._unresolved = [name for name in self.layers if name.startswith("-") or name.endswith(":pre")]
        self._headless = embedding
        for name in self.layers:
            if name not in self._unresolved:
                self._find(name).register_forward_hook(_KeepOutput(self._seen, name))
            elif not name.startswith("-"):
                self._find(name.removesuffix(":pre"))

    def __call__(self, image: Input) -> Outputs:
        """Runs the network on images (B, …), or on named tensors, and returns its :class:`Outputs`."""
        if self._unresolved or self._headless:
            self._resolve(image)
        answer = run(self.model, image)
        if not isinstance(answer, Outputs):
            answer = Outputs(logits_of(answer))
        if not self.layers and self._head is None:
            return answer
        for name in self.layers:
            if name not in self._seen:
                raise UserError(
                    f"{type(self.model).__name__} has a layer {name!r}, but did not run it: name a layer that runs"
                )
        features = {**answer.features, **{name: self._seen[name] for name in self.layers}}
        embedding = answer.embedding if self._head is None else self._read["embedding"]
        self._seen.clear()
        self._read.clear()
        return Outputs(answer.logits, features, embedding, answer.head if self._head is None else self._head)

    def grafted(self, layer: str, behind: nn.Module, head: nn.Module) -> nn.Module:
        """A copy of the network without hooks, in which ``behind`` follows a layer and ``head`` is the classifier.

        Args:
            layer: one of the tapped layers.
            behind: takes the layer's output.
            head: takes the classifier's input.

        Raises:
            UserError: the layer runs several times, or the classifier is no module of the network.
        """
        name = self._names[layer]
        network = self.with_classifier(lambda _: head)
        if name in self._shared:
            raise UserError(
                f"{type(self.model).__name__} runs layer {name!r} several times, so nothing can follow it: name another"
            )
        _replace(network, name, nn.Sequential(network.get_submodule(name), behind))
        return network

    def with_classifier(self, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """A copy of the network without hooks and with another classifier.

        Args:
            change: makes the new classifier of a copy of the present one.

        Raises:
            UserError: the classifier is no module of the network.
        """
        name = next((name for name, module in self.model.named_modules() if module is self._head), None)
        if name is None:
            raise UserError(
                f"the classifier of {type(self.model).__name__} is not a submodule, so it cannot be replaced"
            )
        network = untapped(self.model)
        _replace(network, name, change(network.get_submodule(name)))
        return network

    def _find(self, name: str) -> nn.Module:
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=5, cutoff=0.4) or list(modules)[1:6]
            raise UserError(f"{type(self.model).__name__} has no layer {name!r}; near names: {', '.join(near)}")
        return modules[name]

    def _resolve(self, image: Input) -> None:
        answer, calls = trace(self.model, leading(image, 2))
        self._shared = {name for name, times in Counter(call.name for call in calls).items() if times > 1}
        for layer in self._unresolved:
            place = layer.removesuffix(":pre")
            name = self._stage(place, calls) if place.startswith("-") else place
            module = self._find(name)
            self._names[layer] = name
            activation = last_activation(name, calls) if layer.endswith(":pre") else None
            if activation is None:
                module.register_forward_hook(_KeepOutput(self._seen, layer))
            else:
                activation.register_forward_pre_hook(_KeepInput(self._seen, layer))
        given = isinstance(answer, Outputs) and answer.embedding is not None and answer.head is not None
        if self._headless and not given:
            self._head = self._classifier(logits_of(answer), calls)
            self._head.register_forward_pre_hook(_KeepInput(self._read, "embedding"))
        self._unresolved, self._headless = [], False

    def _stage(self, number: str, calls: list[Call]) -> str:
        names = stages(calls)
        if not number[1:].isdigit() or not 1 <= int(number[1:]) <= len(names):
            raise UserError(
                f"{type(self.model).__name__} has {len(names)} stages ({', '.join(names)}), so {number} is not "
                "one of them: name a layer instead"
            )
        return names[int(number)]

    def _classifier(self, logits: Tensor, calls: list[Call]) -> nn.Module:
        for call in calls:
            if call.output is logits and list(call.module.parameters(recurse=False)):
                return call.module
        raise UserError(
            f"no layer of {type(self.model).__name__} gives its logits, so it has no classifier to read: return "
            "Outputs(logits, embedding=…, head=…) from its forward"
        )


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def untapped(model: nn.Module) -> nn.Module:
    """A copy of a network without the hooks of any :class:`FeatureTap`."""
    network = copy.deepcopy(model)
    for module in network.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _KeepOutput)]:
                del hooks[key]
    return network


class _KeepOutput:
    """A hook that keeps a layer's output; an object, so that copies of the network write into copies of the tap."""

    def __init__(self, seen: dict[str, Tensor], name: str) -> None:
        self.seen = seen
        self.name = name

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen[self.name] = output


class _KeepInput(_KeepOutput):
    """A hook that keeps a layer's input, before an in-place layer overwrites it."""

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> None:
        value = inputs[0]
        self.seen[self.name] = value.clone() if getattr(module, "inplace", False) else value
