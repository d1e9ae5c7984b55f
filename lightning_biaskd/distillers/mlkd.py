"""Multi-level logit distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Distiller, Needs
from lightning_biaskd.distillers.kd import kd_loss
from lightning_biaskd.errors import UserError, check_weights
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def mlkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperatures: Sequence[float],
    instance_weight: float,
    batch_weight: float,
    class_weight: float,
    keep: Tensor | None = None,
) -> Tensor:
    r"""The loss of each sample at three levels; see :class:`MLKD`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperatures: the values of τ.
        instance_weight: weight of the instance level.
        batch_weight: weight of the batch level.
        class_weight: weight of the class level.
        keep: (B,) bool, the samples that enter the Gram matrices; ``None`` for all.

    Returns:
        (B,)

    Example:
        The student is undecided on two samples. At the batch level the teacher distinguishes them:

        >>> s, t = torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> mlkd_loss(s, t, temperatures=[1.0], instance_weight=1.0, batch_weight=0.0, class_weight=0.0)
        tensor([0.3278, 0.3278])
        >>> batch_level = {"temperatures": [1.0], "instance_weight": 0.0, "batch_weight": 1.0, "class_weight": 0.0}
        >>> mlkd_loss(s, t, **batch_level)
        tensor([0.1682, 0.1682])
        >>> mlkd_loss(s, t, **batch_level, keep=torch.tensor([True, False]))
        tensor([0.0841, 0.0000])
    """
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
    total = torch.zeros_like(student[:, 0])
    for temperature in temperatures:
        p_s, p_t = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
        if keep is not None:
            p_s, p_t = p_s * keep.unsqueeze(1), p_t * keep.unsqueeze(1)
        batch_level = (p_t @ p_t.T - p_s @ p_s.T).square().sum(1)
        class_level = (p_t.T @ p_t - p_s.T @ p_s).square().sum() / p_s.shape[1]
        total = total + instance_weight * kd_loss(student, teacher, temperature)
        total = total + batch_weight * batch_level + class_weight * class_level
    return total


class MLKD(Distiller):
    r"""Jin, Wang, Lin, *Multi-Level Logit Distillation*, CVPR 2023.

    With :math:`P_\tau` (B, C) the probabilities of the batch at τ,

    .. math::
        L = \sum_\tau \Big( \frac{\tau^2}{B} \sum_i \mathrm{KL}(P^T_{\tau i} \,\|\, P^S_{\tau i})
        + \frac1B \big\|P^T_\tau P_\tau^{T\top} - P^S_\tau P_\tau^{S\top}\big\|_F^2
        + \frac1C \big\|P_\tau^{T\top} P^T_\tau - P_\tau^{S\top} P^S_\tau\big\|_F^2 \Big)

    the instance, the batch and the class level. Each sample gets half of every batch-level term of its pairs, and an
    equal part of the class level, so that the mean of the losses is L. With ``keep``, dropped samples enter no Gram
    matrix, so the mean over the kept samples is L of these alone. Under DDP the matrices are those of the global batch.

    Temperatures and weights follow the authors' code (Jin-Ying/Multi-Level-Logit-Distillation), in which the
    temperatures are summed, not averaged. Three notes on that code:

    * It masks the samples, and for the class level the classes, on which the teacher is surer than the median. As the
      losses are averaged before they are masked, nothing is selected: the mask is the factor 1/2 (for even B and C
      without ties; a little more otherwise). So one view there is ``0.1 CE + 0.9 · L/2``, and ``kd_weight`` is 0.45.
    * It distils a weakly and a strongly augmented view, ``strong_view=True`` of our data, and sums the two, where a
      mean over a batch of both is their average: so weights are doubled here, that of cross-entropy too. The strong
      view there has no mask, and an instance level only: those of batch and class are computed and not used. Its total
      is ``ce_weight=0.2, kd_weight=0.9`` with ``views=2, instance_weight=[1, 2], batch_weight=[1, 0],
      class_weight=[1, 0]``, which is ``configs/method/mlkd_two_views.yaml``.
    * Its instance level of the strong view takes temperatures 2 and 6 from the weak one. That looks like a slip and is
      not reproduced.

    Args:
        temperatures: the values of τ; a wrong teacher is rectified at their mean, 4 by default.
        instance_weight: weight of the instance level; a list gives each view its own.
        batch_weight: weight of the batch level, a number or a list.
        class_weight: weight of the class level, a number or a list.
        views: number of views of the same images in a batch, one after the other in equal parts. The Gram matrices
            are computed within each view.

    Raises:
        UserError: no temperature, or one that is not positive; no view; a list of weights that is not one per view; in
            training, a batch that can't be divided into as many views.
    """

    def __init__(
        self,
        temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
        instance_weight: float | Sequence[float] = 1.0,
        batch_weight: float | Sequence[float] = 1.0,
        class_weight: float | Sequence[float] = 1.0,
        views: int = 1,
    ) -> None:
        if not temperatures or not min(temperatures) > 0:
            raise UserError(f"temperatures must be positive, at least one, got {temperatures}")
        if views < 1:
            raise UserError(f"views must be at least 1, got {views}")
        super().__init__(sum(temperatures) / len(temperatures))
        self.temperatures = tuple(temperatures)
        self.needs = Needs(pairwise=True, views=views)
        self.instance_weight = self._per_view("instance_weight", instance_weight)
        self.batch_weight = self._per_view("batch_weight", batch_weight)
        self.class_weight = self._per_view("class_weight", class_weight)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        size, rest = divmod(len(student.logits), self.needs.views)
        if rest:
            raise UserError(
                f"a batch of {len(student.logits)} does not divide into {self.needs.views} views: set "
                "data.strong_view to true, or views of MLKD to 1"
            )
        losses = []
        for view in range(self.needs.views):
            part = slice(view * size, (view + 1) * size)
            losses.append(
                mlkd_loss(
                    student.logits[part],
                    teacher.logits[part],
                    self.temperatures,
                    self.instance_weight[view],
                    self.batch_weight[view],
                    self.class_weight[view],
                    None if keep is None else keep[part],
                )
            )
        return torch.cat(losses)

    def _per_view(self, name: str, weight: float | Sequence[float]) -> tuple[float, ...]:
        weights = tuple(weight) if isinstance(weight, Sequence) else (weight,) * self.needs.views
        if len(weights) != self.needs.views:
            raise UserError(f"{name} must be a number or one for each of {self.needs.views} views, got {weight}")
        for value in weights:
            check_weights(**{name: value})
        return weights

    def extra_repr(self) -> str:
        return (
            f"temperatures={self.temperatures}, instance_weight={self.instance_weight}, "
            f"batch_weight={self.batch_weight}, class_weight={self.class_weight}, views={self.needs.views}"
        )
