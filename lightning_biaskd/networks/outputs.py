"""The outputs of a network that a distiller reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_biaskd.errors import UserError


class Outputs(NamedTuple):
    """One network's outputs for one batch.

    Attributes:
        logits: (B, C) class scores.
        features: by layer name, (B, D, H, W) maps or (B, N, D) tokens.
        embedding: (B, D), the classifier's input.
        head: the classifier, (N, D) to logits (N, C).
        index: (B,) int64, the index of each image in its data set, for methods with a memory.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = {}
    embedding: Tensor | None = None
    head: Callable[[Tensor], Tensor] | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index


def with_logits(outputs: Outputs, logits: Tensor) -> Outputs:
    """The same outputs with other logits; ``_replace``, in a form that every supported torch can compile."""
    return Outputs(logits, outputs.features, outputs.embedding, outputs.head, outputs.index)


def with_index(outputs: Outputs, index: Tensor) -> Outputs:
    """The same outputs with the indices of their images."""
    return Outputs(outputs.logits, outputs.features, outputs.embedding, outputs.head, index)


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
