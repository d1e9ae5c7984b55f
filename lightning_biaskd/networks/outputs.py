"""The outputs of a network that a distiller reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.errors import UserError

if TYPE_CHECKING:
    from lightning_biaskd.networks.members import Members


class Outputs(NamedTuple):
    """One network's outputs for one batch.

    Attributes:
        logits: (B, C) class scores, or (B, C, …) of each pixel or token.
        features: by layer name, (B, D, H, W) maps or (B, N, D) tokens.
        embedding: (B, D), the classifier's input.
        head: the classifier, (N, D) to logits (N, C).
        index: (B,) int64, the index of each image in its data set, for methods with a memory.
        members: the outputs of each teacher, where several answer together.
        regions: (B, R, 4), where in the image each of R boxes is, as (x1, y1, x2, y2) in shares of width and height;
            ``None`` where the logits are of images, pixels or tokens.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = {}
    embedding: Tensor | None = None
    head: Callable[[Tensor], Tensor] | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index
    members: Members | None = None
    regions: Tensor | None = None


def with_logits(outputs: Outputs, logits: Tensor) -> Outputs:
    """The same outputs with other logits; ``_replace``, in a form that every supported torch can compile."""
    kept = outputs.features, outputs.embedding, outputs.head, outputs.index, outputs.members, outputs.regions
    return Outputs(logits, *kept)


def with_index(outputs: Outputs, index: Tensor) -> Outputs:
    """The same outputs with the indices of their images."""
    members, regions = outputs.members, outputs.regions
    return Outputs(outputs.logits, outputs.features, outputs.embedding, outputs.head, index, members, regions)


def at_least_float32(x: Tensor) -> Tensor:
    """Lifts half precision to float32 and leaves float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resized(logits: Tensor, size: torch.Size) -> Tensor:
    """Logits (B, C, H, W) of another height and width, by bilinear interpolation; others as they are."""
    if logits.ndim != 4 or len(size) != 2 or logits.shape[2:] == size:
        return logits
    return F.interpolate(at_least_float32(logits), size, mode="bilinear", align_corners=False)


def labels_on_grid(target: Tensor, logits: Tensor) -> Tensor:
    """Labels (B, H, W) of the height and width of logits (B, C, h, w), each the nearest; others as they are."""
    if logits.ndim != 4 or target.ndim != 3 or target.shape[1:] == logits.shape[2:]:
        return target
    return F.interpolate(target.unsqueeze(1).float(), logits.shape[2:], mode="nearest-exact").squeeze(1).long()


def logits_of(answer: Any) -> Tensor:
    """Finds the logits in whatever a classifier returned.

    Args:
        answer: a tensor, an object with ``.logits`` (torchvision's Inception, Hugging Face), or a dict with "logits" or
            "out" (torchvision's segmentation networks). Three-dimensional logits in an object or a dict have their
            classes last, as those of transformers have for tokens; they are moved to the front, (B, C, L).

    Raises:
        UserError: there are no logits in it.
    """
    found = answer.get("logits", answer.get("out", answer)) if isinstance(answer, Mapping) else answer
    logits = getattr(found, "logits", found)
    if isinstance(logits, Tensor) and logits.ndim == 3 and logits is not answer:
        return logits.movedim(-1, 1)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the network returned a {type(answer).__name__} without logits: return a tensor (B, C), "
            "or an object or dict that holds it as 'logits'"
        )
    return logits
