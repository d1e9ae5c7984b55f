"""Wasserstein distillation of logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError, check_weights
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.networks.weights import read

_FLOOR = 1e-8
"""Added to every cost, as in the authors' code, so that no transport is free."""


def class_distances(prototypes: Tensor) -> Tensor:
    r"""One minus the cosine similarity of every two classes.

    For the rows of the teacher's classifier, this is the cost named ``fc`` in the authors' code. (Their results use one
    minus the CKA of the classes' features instead, which their code ships as files.)

    Args:
        prototypes: (C, D), one row for each class.

    Returns:
        (C, C), without gradient.

    Example:
        >>> class_distances(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
        tensor([[0.0000, 1.0000, 0.2929],
                [1.0000, 0.0000, 0.2929],
                [0.2929, 0.2929, 0.0000]])
    """
    rows = F.normalize(at_least_float32(prototypes.detach()), dim=1)
    return (1 - rows @ rows.T).clamp_min(0).fill_diagonal_(0)


def cosine_decay(epoch: int, start: int, end: int) -> float:
    """A factor that falls from 1 after ``start`` epochs to 0 in the last of ``end`` epochs, along a cosine.

    Args:
        epoch: 0-based.
        start: epochs before it falls.
        end: epochs until it is 0; at or before ``start`` for a constant 1.

    Example:
        >>> [round(cosine_decay(epoch, 2, 4), 3) for epoch in range(5)]
        [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    done = min(max(epoch + 1 - start, 0) / (end - start), 1.0) if end > start else 0.0
    return (1 + math.cos(math.pi * done)) / 2


def transport_cost(
    student_log_probs: Tensor, teacher_log_probs: Tensor, used: Tensor, cost: Tensor, epsilon: float, iterations: int
) -> Tensor:
    r"""The cost of each row's entropic transport plan after a fixed number of Sinkhorn iterations.

    The scalings are kept as logarithms. All rows share one kernel, so memory is C² + BC, not BC².

    Args:
        student_log_probs: (B, C), finite.
        teacher_log_probs: (B, C), finite.
        used: (B, C) bool, the classes that take part; each row's probabilities add up to 1 over them.
        cost: (C, C), symmetric, at least 0.
        epsilon: weight of the entropy.
        iterations: number of iterations of Sinkhorn's algorithm, which ends with the student's marginal.

    Returns:
        (B,)

    Example:
        Moving 0.3 from the first class to the second at cost 0.5:

        >>> p, q = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.5, 0.5]])
        >>> cost = (1 - torch.eye(2)) / 2
        >>> transport_cost(p.log(), q.log(), torch.ones(1, 2, dtype=torch.bool), cost, 0.1, 100)
        tensor([0.1500])
    """
    kernel = (-cost / epsilon).exp()

    def scaled(log_scaling: Tensor) -> tuple[Tensor, Tensor]:
        top = log_scaling.detach().masked_fill(~used, -math.inf).amax(1, keepdim=True)
        return (log_scaling - top).masked_fill(~used, -math.inf).exp(), top

    log_u = torch.zeros_like(student_log_probs) - used.sum(1, keepdim=True).to(student_log_probs.dtype).log()
    v = u = log_u
    for _ in range(iterations):
        u, top = scaled(log_u)
        log_v = teacher_log_probs - (u @ kernel).log() - top
        v, top = scaled(log_v)
        log_u = student_log_probs - (v @ kernel).log() - top
    mean_cost = (v @ (kernel * cost)) / (v @ kernel)
    return (student_log_probs.exp() * mean_cost).masked_fill(~used, 0).sum(1)


def wkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    distances: Tensor | None,
    weight: float | Tensor,
    temperature: float,
    sharpness: float,
    epsilon: float,
    iterations: int,
) -> Tensor:
    r"""The Wasserstein loss of each sample; see :class:`WKD`.

    Args:
        student_logits: (B, C), C at least 2.
        teacher_logits: (B, C).
        target: (B,) labels.
        distances: (C, C), one minus the similarity of the classes; ``None`` for equal distances.
        weight: weight of the transport.
        temperature: τ, of the transport.
        sharpness: κ.
        epsilon: weight of the entropy.
        iterations: number of iterations of Sinkhorn's algorithm.

    Returns:
        (B,)

    Raises:
        UserError: ``distances`` does not fit the number of classes.

    Example:
        With equal distances, two non-target classes and the transport alone: 0.4621 of the mass moves at cost 0.6321.

        >>> s, t = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 2.0, 1.0]])
        >>> y = torch.tensor([0])
        >>> args = {"temperature": 1.0, "sharpness": 1.0, "epsilon": 0.05, "iterations": 100}
        >>> wkd_loss(s, t, y, None, 1.0, **args) - wkd_loss(s, t, y, None, 0.0, **args)
        tensor([0.2921])
    """
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
    classes = student.shape[1]
    if distances is None:
        distances = 1 - torch.eye(classes, device=student.device)
    if distances.shape != (classes, classes):
        raise UserError(
            f"distances of shape {tuple(distances.shape)} do not fit {classes} classes: give one row and column "
            "per class"
        )
    cost = (1 - (-sharpness * distances.to(student.dtype)).exp()).relu() + _FLOOR

    y = target.unsqueeze(1)
    others = torch.ones_like(student, dtype=torch.bool).scatter(1, y, False)

    def among_others(logits: Tensor) -> Tensor:
        return F.log_softmax((logits / temperature).masked_fill(~others, -math.inf), dim=1).masked_fill(~others, 0)

    transport = transport_cost(among_others(student), among_others(teacher), others, cost, epsilon, iterations)
    label = -F.softmax(teacher, dim=1).gather(1, y) * F.log_softmax(student, dim=1).gather(1, y)
    return label.squeeze(1) + weight * transport


class WKD(Distiller):
    r"""Lv, Yang, Li, *Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation*.

    NeurIPS 2024, arXiv 2412.08139; the method on logits, WKD-L.

    .. math::
        \ell_i = -p^T_{iy} \log p^S_{iy} + w \sum_{cd} c_{cd}\, \pi^{(i)}_{cd}, \qquad
        c_{cd} = 1 - e^{-\kappa\,(1 - \mathrm{IR}_{cd})}

    with :math:`p` at temperature 1 and :math:`\pi^{(i)}` the transport plan, regularised by its entropy at weight ε,
    between student and teacher at τ over the classes other than the label. :math:`\mathrm{IR}` is the interrelation of
    two classes: confusing related classes costs less. Sinkhorn's algorithm runs for a fixed
    number of iterations, converged or not. There is no factor :math:`\tau^2`, as in the authors' code.

    Interrelations come from the teacher's features and not from its logits: pass ``distances``,
    :math:`1 - \mathrm{IR}`. The authors' are one minus the linear CKA between classes; their files
    (``wkd_cost_matrix`` in JiamingLv/WKD) can be given as they are. Their code's other choice is
    ``class_distances(teacher.fc.weight)``. **Without distances** all classes are equally far apart, and the transport
    is, apart from the entropy, :math:`1 - e^{-\kappa}` times the total variation: a baseline without interrelations,
    not the paper's method.

    The defaults are the authors' for resnet32x4→resnet8x4 on CIFAR-100, with cross-entropy at weight 1. w and τ are
    tuned to the pair (200 and 6 for wrn_40_2→ShuffleNetV1; 30 and 2 for resnet34→18 on ImageNet). w falls by a cosine
    to 0 from the 150th to the last of 240 epochs there (over all 100 on ImageNet). The loss is not zero at the teacher:
    its first part is a cross-entropy, and the entropy blurs the plan.

    Args:
        distances: (C, C) as a tensor or as rows of numbers, or a file that holds it (``.safetensors`` with one tensor,
            or what ``torch.save`` wrote); ``None`` for equal distances.
        weight: w, of the transport.
        temperature: τ, of the transport; a wrong teacher is rectified at the same τ.
        sharpness: κ.
        epsilon: ε, at least 0.0125. Costs are below 1; smaller values risk underflow in float32.
        iterations: number of iterations of Sinkhorn's algorithm.
        decay_start: epochs after which w falls.
        decay_end: epoch in which w reaches 0; at or before ``decay_start`` for a constant w.

    Attributes:
        decay: buffer, the factor on w; 1 until :meth:`Distiller.set_epoch` is called.

    Raises:
        UserError: ``distances`` is not a finite square matrix, or ``epsilon`` or ``iterations`` is too small.
    """

    decay: Tensor
    distances: Tensor | None

    def __init__(
        self,
        distances: str | Sequence[Sequence[float]] | Tensor | None = None,
        weight: float = 600.0,
        temperature: float = 8.0,
        sharpness: float = 1.0,
        epsilon: float = 0.05,
        iterations: int = 10,
        decay_start: int = 150,
        decay_end: int = 240,
    ) -> None:
        super().__init__(temperature)
        if not epsilon >= 0.0125 or iterations < 1:
            raise UserError(f"epsilon must be at least 0.0125 and iterations 1, got {epsilon} and {iterations}")
        matrix = None if distances is None else _matrix(distances)
        self.register_buffer("distances", matrix, persistent=False)
        self.register_buffer("decay", torch.tensor(1.0), persistent=False)
        check_weights(weight=weight, sharpness=sharpness)
        self.weight = weight
        self.sharpness = sharpness
        self.epsilon = epsilon
        self.iterations = iterations
        self.decay_start = decay_start
        self.decay_end = decay_end

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        return wkd_loss(
            student.logits,
            teacher.logits,
            target,
            self.distances,
            self.weight * self.decay,
            self.temperature,
            self.sharpness,
            self.epsilon,
            self.iterations,
        )

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.decay.fill_(cosine_decay(epoch, self.decay_start, self.decay_end))

    def extra_repr(self) -> str:
        return (
            f"weight={self.weight}, sharpness={self.sharpness}, epsilon={self.epsilon}, iterations={self.iterations}, "
            f"decay_start={self.decay_start}, decay_end={self.decay_end}, {super().extra_repr()}"
        )


def _matrix(distances: str | Sequence[Sequence[float]] | Tensor) -> Tensor:
    matrix = _load(distances) if isinstance(distances, str) else torch.as_tensor(distances).detach().clone()
    if matrix.ndim != 2 or len(matrix) != len(matrix.T) or not matrix.isfinite().all():
        raise UserError(f"distances must be a finite (C, C) matrix, got {tuple(matrix.shape)}")
    return matrix


def _load(path: str) -> Tensor:
    content = read(Path(path))
    tensors = list(content.values()) if isinstance(content, Mapping) else [content]
    if len(tensors) != 1 or not isinstance(tensors[0], Tensor):
        raise UserError(f"{path} must hold one tensor and nothing else")
    return tensors[0]
