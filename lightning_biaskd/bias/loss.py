"""The result of a strategy for one batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BiasLoss(NamedTuple):
    """What :class:`BiasStrategy` returns.

    Under DDP the losses are scaled so that their mean over the ranks is the loss of the joined batch.

    Attributes:
        total: the weighted loss, to be minimised.
        right: the part of right samples, before the weight of dynamic learning.
        rectified: the part of wrong samples, before the same weight.
        wrong_rate: share of samples on which the teacher is wrong.
        trust: (B,) or (B, …), the share of its weight that the distillation loss of each sample keeps after
            elimination, γ and trust, detached; the mean over the methods of a sum. ``None`` if the strategy weighs no
            samples.
        known: in the same shape, bool, the samples whose label isn't ``ignore_index``; ``None`` if all count.
        unit: what one sample adds to a mean over the known samples of all ranks, 1/N; times the number of ranks under
            DDP.
        label_trust: mean over the wrong samples of the trust in their labels, detached; ``None`` if all labels are
            trusted.
        discount: in the shape of ``trust``, the share of its cross-entropy that each label loses, detached; ``None`` if
            none loses any.
    """

    total: Tensor
    right: Tensor
    rectified: Tensor
    wrong_rate: Tensor
    trust: Tensor | None = None
    known: Tensor | None = None
    unit: Tensor | None = None
    label_trust: Tensor | None = None
    discount: Tensor | None = None

    def mean_trust(self) -> Tensor:
        """Mean of ``trust`` over the known samples; 1 if no samples are weighed."""
        if self.trust is None:
            return torch.ones_like(self.total)
        if self.known is None:
            return self.trust.mean()
        return torch.where(self.known, self.trust, 0).sum() / self.known.sum().clamp_min(1)
