"""A weighted sum of methods."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from lightning_biaskd.distiller import Distiller, Reads
from lightning_biaskd.errors import UserError, check_weights
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.networks.tap import FeatureTap


class WeightedSum(Distiller):
    r"""A weighted sum of methods, itself a method: :math:`\ell_i = \sum_k w_k\, \ell^{(k)}_i`.

    It needs everything that its parts need. :class:`~lightning_biaskd.bias.BiasStrategy` handles each part separately:
    it rectifies the teacher for a part that reads logits, at that part's temperature, and drops the wrong samples of a
    part that reads features.

    Args:
        parts: methods with their weights.

    Raises:
        UserError: there are no parts, or a weight is negative or not finite.

    Example:
        >>> from lightning_biaskd.distillers import DIST, KD
        >>> both = WeightedSum([(KD(), 1.0), (WeightedSum([(DIST(), 0.5)]), 2.0)])
        >>> [(type(part).__name__, weight) for part, weight in both.terms()]
        [('KD', 1.0), ('DIST', 1.0)]
    """

    least_classes = 1

    def __init__(self, parts: Sequence[tuple[Distiller, float]]) -> None:
        super().__init__()
        if not parts:
            raise UserError("WeightedSum needs at least one (distiller, weight)")
        for part, weight in parts:
            check_weights(**{f"the weight of {type(part).__name__}": weight})
        self.parts = nn.ModuleList(part for part, _ in parts)
        self.weights = tuple(weight for _, weight in parts)
        self.needs = functools.reduce(operator.or_, (part.needs for part, _ in parts))
        self.reads = min((part.reads for part, _ in parts), key=get_args(Reads).index)

    def terms(self) -> Iterator[tuple[Distiller, float]]:
        """The parts with their weights; a sum inside a sum is flattened."""
        for part, weight in zip(self.parts, self.weights, strict=True):
            for term, factor in part.terms():  # type: ignore[operator]  # ModuleList forgets the type
                yield term, weight * factor

    @property
    def builds(self) -> bool:
        """Whether any part has its own :meth:`build`."""
        return any(term.builds for term, _ in self.terms())

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Builds every part."""
        for term, _ in self.terms():
            term.build(student, teacher, num_samples)

    def outputs_of(self, student: Outputs) -> Outputs:
        """The outputs of the network to deploy; at most one part may replace the classifier."""
        for term, _ in self.terms():
            student = term.outputs_of(student)
        return student

    def deployed(self, student: FeatureTap) -> nn.Module:
        """The network to deploy; at most one part may replace it."""
        networks = [term.deployed(student) for term, _ in self.terms()]
        return next((network for network in networks if network is not student.model), student.model)

    def deployed_layers(self) -> Iterable[nn.Module]:
        """The layers of all parts in the network to deploy."""
        return [layer for term, _ in self.terms() for layer in term.deployed_layers()]

    def set_epoch(self, epoch: int) -> None:
        """Sets the schedules of every part."""
        for term, _ in self.terms():
            term.set_epoch(epoch)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        losses = [weight * term(student, teacher, target, keep) for term, weight in self.terms()]
        return torch.stack(losses).sum(0)

    def extra_repr(self) -> str:
        return f"weights={self.weights}"
