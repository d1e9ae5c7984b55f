"""Distillation with an orthogonal projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map, full_matmul
from lightning_biaskd.features.connectors import require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def vkd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 distance of each sample from the teacher's embedding, which is standardised; see :class:`VkD`.

    Args:
        projected: (B, D).
        teacher: (B, D).

    Returns:
        (B,)

    Example:
        The teacher's embedding becomes -1, 1; the differences are 1 and 2:

        >>> vkd_loss(torch.tensor([[0.0, -1.0]]), torch.tensor([[10.0, 20.0]]))
        tensor([1.0000])
    """
    teacher = at_least_float32(teacher)
    normed = F.layer_norm(teacher, teacher.shape[1:])
    return F.smooth_l1_loss(at_least_float32(projected), normed, reduction="none").mean(1)


class VkD(FeatureDistiller):
    r"""Miles, Elezi, Deng, *V_kD: Improving Knowledge Distillation using Orthogonal Projections*, CVPR 2024.

    arXiv 2403.06213. With :math:`e` the average of a map over its positions,

    .. math::
        \ell_i = \frac1D \sum_d h\big((P e^S_i)_d - n(e^T_i)_d\big), \qquad
        h(x) = \begin{cases} x^2/2 & |x| < 1 \\ |x| - 1/2 & \text{otherwise} \end{cases}

    P is learned and has orthonormal columns (or rows, if the student's embedding is the wider one), so it keeps the
    angles and lengths of the student's embeddings, and cannot learn in the student's place. n scales each embedding of
    the teacher to mean 0 and variance 1. P is a product of Householder reflections whose vectors are learned, as in
    torch's parametrisation of rectangular matrices, which the authors use.

    Their code (roymiles/vkd) is for transformers on ImageNet: the student's tokens are averaged, and with weight 1 KD
    is added on a second classifier, which reads a distillation token. Here the class tokens are left out of the
    average, and the loss's weight is 1, with cross-entropy at 1.

    Args:
        layer: the student's feature map or tokens.
        teacher_layer: the teacher's feature map or tokens; ``None`` for the same name.

    Raises:
        UserError: when called before ``build``, or on features that are neither maps nor tokens.
    """

    def __init__(self, layer: Layer = -1, teacher_layer: Layer | None = None) -> None:
        super().__init__(layer, teacher_layer)
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the projection."""
        ((s, t),) = self.pairs(student, teacher)
        self.connectors = to_device_of([OrthogonalProjection(as_map(s).shape[1], as_map(t).shape[1])], s)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        (project,) = require_built(self.connectors)
        own, others = (as_map(x).mean((2, 3)) for x in next(self.pairs(student, teacher)))
        return vkd_loss(project(own), others)


class OrthogonalProjection(nn.Module):
    """A linear map without bias whose matrix has orthonormal columns, or orthonormal rows if it has fewer of them.

    Args:
        into: size of the input.
        out: size of the output.

    Example:
        >>> projection = OrthogonalProjection(2, 5)
        >>> round(projection(torch.tensor([[3.0, 4.0]])).norm().item(), 4)
        5.0
    """

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.widens = out >= into
        self.vectors = nn.Parameter(torch.randn(max(into, out), min(into, out)))  # one in each column, below a 1

    def forward(self, x: Tensor) -> Tensor:
        """Projects (B, into) to (B, out)."""
        below = at_least_float32(self.vectors).tril(-1)
        matrix = torch.linalg.householder_product(below, 2 / (1 + below.square().sum(0)))
        return full_matmul(x, (matrix.T if self.widens else matrix).to(x.dtype))
