"""Relational knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Needs
from lightning_biaskd.errors import check_weights
from lightning_biaskd.features.base import FeatureDistiller, embeddings, full_matmul, pairs_kept, unit
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def _relations(x: Tensor, pairs: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (B, B) divided by their mean, and cosines (B, B, B) of the angles at the first of three.

    Both are 0 where a sample is not kept.
    """
    gaps = torch.where(pairs.unsqueeze(2), x.unsqueeze(0) - x.unsqueeze(1), 0)
    distances, directions = gaps.norm(dim=2), unit(gaps, dim=2)
    mean = distances.sum() / (count * (count - 1)).clamp_min(1)
    return distances / mean.where(mean > 0, torch.inf), full_matmul(directions, directions.mT)


def rkd_loss(
    student: Tensor,
    teacher: Tensor,
    distance_weight: float,
    angle_weight: float,
    keep: Tensor | None = None,
) -> Tensor:
    """The relational loss, divided among the samples; see :class:`RKD`.

    Args:
        student: (B, D).
        teacher: (B, D), of any other D.
        distance_weight: weight of the distances.
        angle_weight: weight of the angles.
        keep: (B,) bool, the samples that count; ``None`` for all. The others get loss 0.

    Returns:
        (B,). The mean over the kept samples is the published loss of these samples alone.

    Example:
        The student's three samples are equally far apart; the teacher's lie on a line. With two samples there is
        nothing to compare:

        >>> s, t = torch.eye(3), torch.tensor([[0.0], [1.0], [2.0]])
        >>> rkd_loss(s, t, distance_weight=25.0, angle_weight=0.0)
        tensor([1.3021, 0.5208, 1.3021])
        >>> rkd_loss(s, t, distance_weight=25.0, angle_weight=0.0, keep=torch.tensor([True, True, False]))
        tensor([0., 0., 0.])
    """
    pairs, count = pairs_kept(student, keep)
    distance_s, angle_s = _relations(at_least_float32(student), pairs, count)
    distance_t, angle_t = _relations(at_least_float32(teacher), pairs, count)
    distance = F.smooth_l1_loss(distance_s, distance_t, reduction="none").sum(1)
    angles = F.smooth_l1_loss(angle_s, angle_t, reduction="none")
    angle = (angles.sum((1, 2)) + 2 * angles.sum((0, 2))) / 3  # the two ends are symmetric
    size = count.clamp_min(1)
    return distance_weight * distance / size + angle_weight * angle / size**2


class RKD(FeatureDistiller):
    r"""Park, Kim, Lu, Cho, *Relational Knowledge Distillation*, CVPR 2019, arXiv 1904.05068.

    With :math:`d_{ij}` the distance of two embeddings over the mean distance of the batch, :math:`c_{ijk}` the cosine
    of the angle at i between the directions to j and k, and :math:`h` the Huber loss with threshold 1,

    .. math::
        L = \frac{w_d}{B^2} \sum_{ij} h(d^S_{ij} - d^T_{ij}) + \frac{w_a}{B^3} \sum_{ijk} h(c^S_{ijk} - c^T_{ijk})

    Each member of a pair gets half of its term, each of three samples a third, so that the mean of the losses is L.
    With ``keep``, all sums and means are over the kept samples: a triple counts only if the teacher is right on all
    three. Under DDP the batch is the global batch of N samples, so memory grows as N³ + N²D.

    The weights are those of RepDistiller and mdistiller, where the loss has weight 1 with cross-entropy at 1.

    Args:
        distance_weight: :math:`w_d`, of the distances.
        angle_weight: :math:`w_a`, of the angles.
    """

    needs = Needs(embedding=True, pairwise=True)

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        check_weights(distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return rkd_loss(*embeddings(student, teacher), self.distance_weight, self.angle_weight, keep)

    def extra_repr(self) -> str:
        return f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"
