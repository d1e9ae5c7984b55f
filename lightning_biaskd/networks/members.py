"""The outputs of several teachers, and the one answer that they give together."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs, with_logits

Weights = Literal["mean", "confidence"]


class Members(NamedTuple):
    """The outputs of the teachers of an ensemble for one batch.

    Attributes:
        logits: (B, K, C), or (B, K, C, …) of each pixel or token, of K teachers.
        weights: how their probabilities are weighed, see :class:`~lightning_biaskd.EnsembleTeacher`.
        temperature: τ, at which probabilities are averaged.
    """

    logits: Tensor
    weights: Weights
    temperature: float

    def shares(self, target: Tensor) -> Tensor:
        """What each teacher counts, (B, K) with sum 1, for images with labels (B,)."""
        if self.weights == "confidence":
            return confidence(self.logits, target)
        return uniform(self.logits)


def weighed(teacher: Outputs, target: Tensor) -> Outputs:
    """The answer of several teachers where labels weigh them; others as they are.

    Args:
        teacher: the teacher's outputs.
        target: (B,) labels.

    Raises:
        UserError: maps, of which no label weighs a whole image.
    """
    members = teacher.members
    if members is None or members.weights != "confidence":
        return teacher
    if target.ndim > 1:
        raise UserError("weights 'confidence' of an ensemble are for images, not for maps: choose mean")
    return with_logits(teacher, mixture(members.logits, members.shares(target), members.temperature))


def uniform(logits: Tensor) -> Tensor:
    """Equal shares (B, K) for logits (B, K, …)."""
    return logits.new_full(logits.shape[:2], 1 / logits.shape[1])


def confidence(logits: Tensor, target: Tensor) -> Tensor:
    r"""Weighs the teachers of each sample by their cross-entropy with its label.

    .. math:: w_k = \frac{1}{K - 1} \left(1 - \frac{e^{\mathrm{CE}_k}}{\sum_j e^{\mathrm{CE}_j}}\right)

    Zhang, Chen, Wang, *Confidence-Aware Multi-Teacher Knowledge Distillation*, ICASSP 2022, arXiv 2201.00007.

    Args:
        logits: (B, K, C) of K teachers, two or more.
        target: (B,) labels.

    Returns:
        (B, K), with sum 1.

    Example:
        >>> import torch
        >>> confidence(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([0]))  # the first knows the label
        tensor([[0.6379, 0.3621]])
    """
    teachers = logits.shape[1]
    labels = target.unsqueeze(1).expand(-1, teachers)
    ce = F.cross_entropy(logits.movedim(2, 1), labels, reduction="none")
    return (1 - ce.softmax(1)) / (teachers - 1)


def mixture(logits: Tensor, shares: Tensor, temperature: float = 1.0) -> Tensor:
    r"""The logits z of a weighted mean of distributions.

    .. math:: \mathrm{softmax}(z / \tau) = \sum_k w_k\, \mathrm{softmax}(z_k / \tau)

    Args:
        logits: (B, K, C), or (B, K, C, …).
        shares: (B, K), w, with sum 1.
        temperature: τ.

    Returns:
        (B, C), or (B, C, …).

    Example:
        >>> import torch
        >>> z = mixture(torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]), torch.tensor([[0.5, 0.5]]))
        >>> z.softmax(1)  # the mean of (0.5, 0.5) and (0.88, 0.12)
        tensor([[0.6904, 0.3096]])
    """
    log_share = shares.log().view(*shares.shape, *[1] * (logits.ndim - 2))
    return temperature * (F.log_softmax(logits / temperature, dim=2) + log_share).logsumexp(1)
