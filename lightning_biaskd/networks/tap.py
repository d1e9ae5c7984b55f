"""Reading the features of any network, without editing it."""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs, logits_of

_NO_STAGE = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d),
)


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
        UserError: a layer does not exist (the line lists near names), the network has fewer stages, or no layer of it
            gives the logits.

    Example:
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

    def __call__(self, image: Tensor) -> Outputs:
        """Runs the network on ``image`` (B, …) and returns its :class:`Outputs`."""
        if self._unresolved or self._headless:
            self._resolve(image)
        answer = self.model(image)
        if not isinstance(answer, Outputs):
            answer = Outputs(logits_of(answer))
        if not self.layers and self._head is None:
            return answer
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
        own = next((own for own, module in self.model.named_modules() if module is self._head), None)
        if own is None:
            raise UserError(
                f"the classifier of {type(self.model).__name__} is not a submodule, so it cannot be replaced"
            )
        if name in self._shared:
            raise UserError(
                f"{type(self.model).__name__} runs layer {name!r} several times, so nothing can follow it: name another"
            )
        network = untapped(self.model)
        for place, module in ((name, nn.Sequential(network.get_submodule(name), behind)), (own, head)):
            parent, _, child = place.rpartition(".")
            setattr(network.get_submodule(parent), child, module)
        return network

    def _find(self, name: str) -> nn.Module:
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=5, cutoff=0.4) or list(modules)[1:6]
            raise UserError(f"{type(self.model).__name__} has no layer {name!r}; near names: {', '.join(near)}")
        return modules[name]

    def _resolve(self, image: Tensor) -> None:
        answer, calls = _trace(self.model, image[:2])
        self._shared = {name for name, times in Counter(call.name for call in calls).items() if times > 1}
        for layer in self._unresolved:
            place = layer.removesuffix(":pre")
            name = self._stage(place, calls) if place.startswith("-") else place
            module = self._find(name)
            self._names[layer] = name
            activation = _last_activation(name, calls) if layer.endswith(":pre") else None
            if activation is None:
                module.register_forward_hook(_KeepOutput(self._seen, layer))
            else:
                activation.register_forward_pre_hook(_KeepInput(self._seen, layer))
        given = isinstance(answer, Outputs) and answer.embedding is not None and answer.head is not None
        if self._headless and not given:
            self._head = self._classifier(logits_of(answer), calls)
            self._head.register_forward_pre_hook(_KeepInput(self._read, "embedding"))
        self._unresolved, self._headless = [], False

    def _stage(self, number: str, calls: list[_Call]) -> str:
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
        stages = list(last.values())
        if not number[1:].isdigit() or not 1 <= int(number[1:]) <= len(stages):
            raise UserError(
                f"{type(self.model).__name__} has {len(stages)} stages ({', '.join(stages)}), so {number} is not "
                "one of them: name a layer instead"
            )
        return stages[int(number)]

    def _classifier(self, logits: Tensor, calls: list[_Call]) -> nn.Module:
        for call in calls:
            if call.output is logits and list(call.module.parameters(recurse=False)):
                return call.module
        raise UserError(
            f"no layer of {type(self.model).__name__} gives its logits, so it has no classifier to read: return "
            "Outputs(logits, embedding=…, head=…) from its forward"
        )


def untapped(model: nn.Module) -> nn.Module:
    """A copy of a network without the hooks of any :class:`FeatureTap`."""
    network = copy.deepcopy(model)
    for module in network.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _KeepOutput)]:
                del hooks[key]
    return network


class _Call(NamedTuple):
    """One layer that ran; calls are in the order in which layers finish."""

    name: str
    module: nn.Module
    output: Tensor

    @property
    def size(self) -> torch.Size:
        """Of a map (B, D, H, W) or of tokens (B, N, D); empty for anything else."""
        shape = self.output.shape
        return torch.Size({3: shape[1:2], 4: shape[2:]}.get(len(shape), ()))


def _with_ancestors(name: str) -> list[str]:
    """A module's name and those of the modules around it, without the network itself."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)] if name else []


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
def _trace(model: nn.Module, image: Tensor) -> tuple[Any, list[_Call]]:
    """Runs a network once in eval mode, without changing it."""
    calls: list[_Call] = []
    hooks = [
        module.register_forward_hook(
            lambda module, _inputs, output, name=name: (
                calls.append(_Call(name, module, output)) if isinstance(output, Tensor) else None
            )
        )
        for name, module in model.named_modules()
    ]
    try:
        with evaluating(model):
            return model(image), calls
    finally:
        for hook in hooks:
            hook.remove()


def _last_activation(name: str, calls: list[_Call]) -> nn.Module | None:
    """The activation at the end of the named layer, if there is one."""
    output = next(call.output for call in reversed(calls) if call.name == name)
    for call in reversed(calls):
        if call.output is output and type(call.module).__module__ == nn.ReLU.__module__:
            return call.module
    return None


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
