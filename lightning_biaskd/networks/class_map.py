"""A teacher whose classes are not those of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs

_GAP = 100.0


class ClassMap(nn.Module):
    r"""Puts a network's logits in the order of the data set's classes.

    A class that the network doesn't know gets a logit 100 below the smallest known one. Its tempered probability is
    close to zero (:math:`e^{-100/\tau}`, 1e-11 at τ = 4), and the ratios between the other classes stay the same. A
    teacher is therefore wrong on every image of an unknown class, and the strategy treats it as any other mistake.
    Methods that standardise logits over the classes or the batch, and rectification with ``space="logits"``, need a
    teacher that knows all classes, because one logit so far off hides the differences between the others.

    Args:
        index: for each of the data set's C classes, the index of the network's output for it, or -1 for none. Outputs
            that aren't listed (of a network with more classes) are dropped.

    Raises:
        UserError: an output that the network doesn't have, one for two classes, or no class that it knows.

    Shape:
        (N, T, …) to (N, C, …).

    Example:
        >>> ClassMap([2, -1, 0])(torch.tensor([[5.0, 6.0, 7.0]]))
        tensor([[  7., -95.,   5.]])
    """

    index: Tensor

    def __init__(self, index: Sequence[int]) -> None:
        super().__init__()
        if not all(isinstance(place, Integral) for place in index):
            raise UserError(f"a class map holds whole numbers, the network's outputs, and {list(index)} does not")
        if min(index, default=-1) < -1 or max(index, default=-1) < 0:
            raise UserError(
                "a class map names for each class of the data an output of the network, numbered from 0, or -1 for "
                f"none; {list(index)} does not"
            )
        output, times = max(Counter(place for place in index if place >= 0).items(), key=lambda item: item[1])
        if times > 1:
            raise UserError(
                f"the class map names output {output} for {times} classes, which the network would not tell apart: "
                "name each output once, or -1 for none"
            )
        self.last = max(index)
        self.complete = -1 not in index
        self.register_buffer("index", torch.tensor(index), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        if logits.shape[1] <= self.last:
            raise UserError(f"the class map names output {self.last} of a network that has {logits.shape[1]}")
        if self.complete:
            return logits.index_select(1, self.index)
        unknown = (self.index < 0).view(-1, *[1] * (logits.ndim - 2))
        known = logits.index_select(1, self.index.clamp_min(0))
        least = known.masked_fill(unknown, torch.inf).amin(1, keepdim=True)
        return torch.where(unknown, least - _GAP, known)

    def outputs(self, outputs: Outputs) -> Outputs:
        """The same outputs with logits, and a classifier, of the data set's classes."""
        head = outputs.head
        mapped = None if head is None else lambda embedding: self(head(embedding))
        return Outputs(self(outputs.logits), outputs.features, outputs.embedding, mapped, outputs.index)

    def extra_repr(self) -> str:
        return f"{len(self.index)} classes from {self.last + 1} outputs or more"
