"""The cross-entropy with labels, over samples and over processes, and the accuracy of a step."""

from __future__ import annotations

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distributed.ranks import world_size
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import at_least_float32

_NONE = -100
"""What PyTorch ignores unless told otherwise; no label of ours is negative."""


def cross_entropy(
    logits: Tensor, target: Tensor, label_smoothing: float = 0.0, ignore_index: int | None = None
) -> Tensor:
    """Cross-entropy (B, …) of logits (B, C, …) with each label (B, …) or mixed one (B, C), in at least float32.

    It is 0 where the label is ``ignore_index``.
    """
    logits = at_least_float32(logits)
    target = target.to(logits) if target.is_floating_point() else target
    ignored = _NONE if ignore_index is None else ignore_index
    return F.cross_entropy(logits, target, ignore_index=ignored, label_smoothing=label_smoothing, reduction="none")


def checked_rows(losses: Tensor, logits: Tensor) -> Tensor:
    """The result of a ``cross_entropy`` that a subclass may have overridden.

    Raises:
        UserError: neither a loss for each sample nor a scalar.
    """
    shape = logits.shape[:1] + logits.shape[2:]
    if losses.ndim and losses.shape != shape:
        raise UserError(f"cross_entropy gives {tuple(losses.shape)}: return a loss for each sample, {tuple(shape)}")
    return losses


def mean_of_known(losses: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean of losses (B, …) over the labels that are known (B, …), ``None`` for all; 0 if there is none.

    A scalar is taken for the mean.
    """
    if losses.ndim == 0 or known is None:
        return losses.mean()
    return losses.sum() / known.sum().clamp_min(1)


def of_all_ranks(loss: Tensor, known: Tensor) -> Tensor:
    """From the mean over this rank's known labels, its part of the mean over those of all ranks, as DDP averages."""
    if world_size() == 1:
        return loss
    own = known.sum()
    total = own.clone()
    dist.all_reduce(total)
    return loss * (own * world_size() / total.clamp_min(1).to(loss.dtype))


def accuracy(logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """Share of the labels that the logits have as their first class.

    Args:
        logits: (B, C, …).
        target: (B, …) labels, or (B, C) mixed ones, whose main class counts.
        known: (B, …) bool, the labels that count; ``None`` for all.
    """
    target = target.argmax(1) if target.is_floating_point() else target
    hit = logits.detach().argmax(1) == target
    return hit.float().mean() if known is None else (hit & known).sum() / known.sum().clamp_min(1)
