"""What a network gives to a distiller, and how it is read from any ``nn.Module``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_biaskd.errors import UserError


class Outputs(NamedTuple):
    """One network's answer to one batch.

    Attributes:
        logits: (B, C) class scores.
        features: by layer name, (B, D, H, W) maps or (B, N, D) tokens.
        embedding: (B, D), what the classifier reads.
        head: the classifier, (N, D) to logits (N, C).
    """

    logits: Tensor
    features: Mapping[str, Tensor] = {}
    embedding: Tensor | None = None
    head: Callable[[Tensor], Tensor] | None = None


def with_logits(outputs: Outputs, logits: Tensor) -> Outputs:
    """The same outputs with other logits; ``_replace``, in a form that every supported torch can compile."""
    return Outputs(logits, outputs.features, outputs.embedding, outputs.head)


def at_least_float32(x: Tensor) -> Tensor:
    """Lifts half precision to float32 and leaves float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def logits_of(answer: Any) -> Tensor:
    """Finds the logits in whatever a classifier returned.

    Args:
        answer: a tensor, an object with ``.logits`` (torchvision's Inception, Hugging Face), or a dict with "logits".

    Raises:
        UserError: there are no logits in it.
    """
    if isinstance(answer, Mapping):
        answer = answer.get("logits", answer)
    logits = getattr(answer, "logits", answer)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the network returned a {type(answer).__name__} without logits: return a tensor (B, C), "
            "or an object or dict that holds it as 'logits'"
        )
    return logits


class FeatureTap:
    """Runs a network and keeps what the named layers gave; the network itself is not edited.

    Args:
        model: any network.
        layers: names as in ``model.named_modules()``. With none, no hook is set and nothing is paid.
        head: name of the classifier, handed out with the outputs; ``None`` for none.

    Raises:
        UserError: a layer does not exist; the line lists near names.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> outputs = FeatureTap(net, ["2"])(torch.zeros(5, 1, 2, 2))
        >>> outputs.logits.shape, outputs.features["2"].shape
        (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] = (), head: str | None = None) -> None:
        self.model = model
        self._seen: dict[str, Tensor] = {}
        for name in layers:
            self._hook(name, self._find(name))
        self._head = None if head is None else self._find(head)

    def _find(self, name: str) -> nn.Module:
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=5, cutoff=0.4) or list(modules)[1:6]
            raise UserError(f"{type(self.model).__name__} has no layer {name!r}; near names: {', '.join(near)}")
        return modules[name]

    def _hook(self, name: str, module: nn.Module) -> None:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._seen[name] = output

        module.register_forward_hook(keep)

    def __call__(self, image: Tensor) -> Outputs:
        """Runs the network on ``image`` (B, …) and returns its :class:`Outputs`."""
        answer = self.model(image)
        features, self._seen = self._seen, {}
        if not isinstance(answer, Outputs):
            answer = Outputs(logits_of(answer))
        head = answer.head if self._head is None else self._head
        return Outputs(answer.logits, {**answer.features, **features}, answer.embedding, head)
