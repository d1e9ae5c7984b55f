"""Probabilistic knowledge transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_biaskd.distiller import Needs
from lightning_biaskd.features.base import FeatureDistiller, embeddings, full_matmul, pairs_kept, unit
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_EPS = 1e-7


def pkt_loss(student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
    """The divergence of each sample's distribution over the batch; see :class:`PKT`.

    Args:
        student: (B, D).
        teacher: (B, D), of any other D.
        keep: (B,) bool, the samples that count; ``None`` for all. The others get loss 0.

    Returns:
        (B,). The mean over the kept samples is the published loss of these samples alone.

    Example:
        The student sees the same direction in both samples, the teacher opposite ones:

        >>> s, t = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [-1.0]])
        >>> pkt_loss(s, t)
        tensor([0.3466, 0.3466])
        >>> pkt_loss(s, t, keep=torch.tensor([True, False]))
        tensor([0., 0.])
    """
    pairs, count = pairs_kept(student, keep)

    def conditional(x: Tensor) -> Tensor:
        rows = unit(at_least_float32(x))
        affinity = torch.where(pairs, (full_matmul(rows, rows.T) + 1) / 2, 0)
        total = affinity.sum(1, keepdim=True)
        return affinity / total.where(total > 0, 1)

    p, q = conditional(teacher), conditional(student)
    return (p * ((p + _EPS) / (q + _EPS)).log()).sum(1) / count.clamp_min(1)


class PKT(FeatureDistiller):
    r"""Passalis, Tefas, *Learning Deep Representations with Probabilistic Knowledge Transfer*, ECCV 2018.

    arXiv 1803.10837. With :math:`\cos_{ij}` of two embeddings of the batch, the probability that j is sampled as a
    neighbour of i is

    .. math:: p_{j|i} = \frac{\cos_{ij} + 1}{\sum_k (\cos_{ik} + 1)}, \qquad
        \ell_i = \frac1B \sum_j p^T_{j|i} \log\frac{p^T_{j|i}}{p^S_{j|i}}

    A sample's loss is the divergence of its own distribution over the batch. (Splitting the term of a pair between its
    two members would make some losses negative.) With ``keep``, dropped samples are not neighbours of any sample, and
    the mean over the kept ones is the loss of these alone. Under DDP the batch is the global batch.

    The loss's weight of 30000 with cross-entropy at 1 is that of RepDistiller and mdistiller; the large number makes
    up for a mean over B² where a divergence has a sum over B, and for distributions that are nearly flat.
    """

    needs = Needs(embedding=True, pairwise=True)

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return pkt_loss(*embeddings(student, teacher), keep)

    def extra_repr(self) -> str:
        return ""
