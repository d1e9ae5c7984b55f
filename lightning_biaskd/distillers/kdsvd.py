"""Distillation of singular vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, Layer, full_matmul, same_size, unit
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

Vectors = Literal["columns", "channels"]

_MORE = 3
"""The number of singular vectors of the student, in addition to k, that can match the teacher's."""


def _matrix(feature: Tensor, vectors: Vectors) -> Tensor:
    """A map (B, D, H, W) as matrices (B, DH, W) or (B, HW, D)."""
    return feature.flatten(1, 2) if vectors == "columns" else feature.flatten(2).mT


def _spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (B, N), the largest first, and eigenvectors in the columns of (B, N, N); without gradient."""
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1), vectors.flip(-1)


def _teacher_vectors(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Right singular vectors (B, N, K) whose entries add up to more than 0, and singular values (B, 1, K)."""
    values, vectors = _spectrum(full_matmul(x.mT, x))
    vectors = vectors[..., :k]
    sign = torch.where(vectors.sum(1, keepdim=True) < 0, -1, 1)
    return vectors * sign, unit(values[:, None, :k].clamp_min(0).sqrt(), dim=2)


def _student_vectors(x: Tensor, teacher: Tensor, k: int) -> Tensor:
    """The right singular vectors that are nearest to the teacher's (B, N, K), each turned to its side.

    Their gradient is that of perturbation theory, without the terms of singular values that can't be told apart.
    """
    gram = full_matmul(x.mT, x)
    values, vectors = _spectrum(gram)
    cosine = full_matmul(vectors[..., : k + _MORE].mT, teacher)
    best = cosine.abs().argmax(1, keepdim=True)
    chosen = vectors.gather(2, best.expand(-1, vectors.shape[1], -1))
    gaps = values.gather(1, best.squeeze(1)).unsqueeze(1) - values.unsqueeze(2)
    apart = gaps.abs() > torch.finfo(x.dtype).eps * x.shape[2] * values[:, None, :1]
    change = full_matmul(vectors.mT, full_matmul(gram - gram.detach(), chosen)) / gaps.where(apart, torch.inf)
    return (chosen + full_matmul(vectors, change)) * cosine.gather(1, best).sign()


def _relation(vectors: Tensor, before: Tensor) -> Tensor:
    return (-(vectors.unsqueeze(2) - before.unsqueeze(1)).square() / 8).exp()


def kdsvd_loss(students: Sequence[Tensor], teachers: Sequence[Tensor], k: int, vectors: Vectors) -> Tensor:
    """The loss of each sample over several layers; see :class:`KDSVD`.

    Args:
        students: (B, D, H, W) each, or tokens (B, N, D), at least two.
        teachers: the same, for the teacher.
        k: the number of the teacher's singular vectors to match.
        vectors: what they run over, ``"columns"`` or ``"channels"``.

    Returns:
        (B,)

    Raises:
        UserError: the vectors run over channels, and the features differ in their number.

    Example:
        The teacher's columns are equal in both layers, the student's only in the first:

        >>> student = [torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[8.0, 1.0]]]])]
        >>> teacher = [torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[1.0, 1.0]]]])]
        >>> kdsvd_loss(student, teacher, k=1, vectors="columns")
        tensor([0.0037])
    """
    losses: list[Tensor] = []
    before: tuple[Tensor, Tensor] | None = None
    for student, teacher in zip(students, teachers, strict=True):
        s, t = same_size(at_least_float32(student), at_least_float32(teacher))
        if vectors == "channels" and s.shape[1] != t.shape[1]:
            raise UserError(
                f"KDSVD compares vectors over channels, and the student has {s.shape[1]}, the teacher {t.shape[1]}: "
                "set vectors to 'columns', or name layers of equal width"
            )
        right_t, scale = _teacher_vectors(_matrix(t, vectors), k)
        right_s = _student_vectors(_matrix(s, vectors), right_t, k)
        now = right_s * scale, right_t * scale
        if before is not None:
            gap = _relation(now[0], before[0]) - _relation(now[1], before[1])
            losses.append(gap.square().sum((1, 2, 3)))
        before = now
    return torch.stack(losses).sum(0)


class KDSVD(FeatureDistiller):
    r"""Lee, Kim, Song, *Self-supervised Knowledge Distillation Using Singular Value Decomposition*, ECCV 2018.

    arXiv 1807.06819. A map is unrolled to a matrix, and its first right singular vectors :math:`v_{ilk}` stand for it,
    times the teacher's singular values, which are scaled to length 1. How they change from layer to layer is compared:

    .. math::
        \ell_i = \sum_{l > 1} \sum_{k, a, b} \big(r^S_{ilkab} - r^T_{ilkab}\big)^2, \qquad
        r_{ilkab} = \exp\big(-(v_{ilka} - v_{i,l-1,kb})^2 / 8\big)

    Each vector of the teacher is compared with the student's vector, among its first K + 3, that is nearest in
    direction, with its sign adjusted. The larger of two maps is averaged to the size of the smaller.

    The sign of a singular vector is arbitrary, but the relation of two layers depends on it. The published codes leave
    it to the linear algebra library, which may choose different signs for different layers. Here the sign is chosen so
    that the entries of each of the teacher's vectors have a positive sum. For the first vector of a map after ReLU,
    this is the published loss whenever the library chooses the same sign for all layers.

    The vectors are the eigenvectors of a small Gram matrix, with the gradient of perturbation theory; where two
    singular values coincide, so that a vector has no derivative, it is zero. On CUDA, PyTorch's ``eigh`` waits for the
    device.

    Unrolled by ``"columns"``, vectors run over the columns of a map, as in mdistiller's code: networks of any widths
    can be compared. By ``"channels"``, as in the authors' code and in RepDistiller's, they run over its channels.
    Student and teacher then need the same number of channels, and each sample has a Gram matrix with as many rows and
    columns.

    K and the loss's weight of 1 with cross-entropy at 1 are mdistiller's, layers (the three stages) those of both.

    Args:
        layers: the student's layers, by name or by stage, at least two.
        teacher_layers: the teacher's layers, in the same order; ``None`` for the same names.
        k: K, the number of singular vectors.
        vectors: what they run over, ``"columns"`` or ``"channels"``.

    Raises:
        UserError: fewer than two layers, ``k`` below 1, or unknown ``vectors``; when called, features that are not
            maps, or vectors over channels that differ in number.
    """

    def __init__(
        self,
        layers: Sequence[Layer] = (-3, -2, -1),
        teacher_layers: Sequence[Layer] | None = None,
        k: int = 1,
        vectors: Vectors = "columns",
    ) -> None:
        super().__init__(layers, teacher_layers)
        if len(self.needs.layers) < 2:
            raise UserError(f"KDSVD compares layers with each other: name at least two, not {self.needs.layers}")
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}")
        if vectors not in get_args(Vectors):
            raise UserError(f"unknown vectors {vectors!r}: choose {', '.join(get_args(Vectors))}")
        self.k = k
        self.vectors: Vectors = vectors

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        students, teachers = zip(*(same_size(s, t) for s, t in self.pairs(student, teacher)), strict=True)
        if all(_matrix(x, self.vectors).shape[2] == 1 for x in students):
            raise UserError("KDSVD teaches nothing with vectors of one number: name layers with larger maps")
        return kdsvd_loss(students, teachers, self.k, self.vectors)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, k={self.k}, vectors={self.vectors!r}"
