"""Several methods at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_biaskd.distillers.base import Distiller
from lightning_biaskd.outputs import Outputs


class WeightedSum(Distiller):
    r"""A weighted sum of methods, itself a method: :math:`\ell_i = \sum_k w_k\, \ell^{(k)}_i`.

    :class:`~lightning_biaskd.bias.BiasStrategy` treats each part by its own kind: the wrong samples of one that reads
    logits are rectified at its temperature, those of a feature method are eliminated.

    Args:
        parts: methods with their weights.

    Raises:
        ValueError: no parts, or parts that name different heads.

    Example:
        >>> from lightning_biaskd.distillers import DKD, KD
        >>> both = WeightedSum([(KD(), 1.0), (WeightedSum([(DKD(), 0.5)]), 2.0)])
        >>> [(type(part).__name__, weight) for part, weight in both.terms()]
        [('KD', 1.0), ('DKD', 1.0)]
    """

    def __init__(self, parts: Sequence[tuple[Distiller, float]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("WeightedSum needs at least one (distiller, weight)")
        self.parts = nn.ModuleList(part for part, _ in parts)
        self.weights = tuple(weight for _, weight in parts)
        self.layers = tuple(dict.fromkeys(name for part, _ in self.terms() for name in part.layers))
        heads = {part.head for part, _ in self.terms()} - {None}
        if len(heads) > 1:
            raise ValueError(f"the parts name different heads: {', '.join(map(repr, sorted(map(str, heads))))}")
        self.head = next(iter(heads), None)
        self.rectifiable = any(part.rectifiable for part, _ in self.terms())

    def terms(self) -> Iterator[tuple[Distiller, float]]:
        """See :class:`Distiller`; a sum inside a sum is flattened."""
        for part, weight in zip(self.parts, self.weights, strict=True):
            for term, factor in part.terms():  # type: ignore[operator]  # ModuleList forgets the type
                yield term, weight * factor

    def set_epoch(self, epoch: int) -> None:
        """See :class:`Distiller`; every part is told."""
        for term, _ in self.terms():
            term.set_epoch(epoch)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        """See :class:`Distiller`."""
        losses = [weight * term(student, teacher, target, keep) for term, weight in self.terms()]
        return torch.stack(losses).sum(0)

    def extra_repr(self) -> str:
        return f"weights={self.weights}"
