"""How far two sources are trusted against each other, by their running accuracies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MEMORY = 3000
"""Number of recent samples that the running accuracies cover."""
CLASS_MEMORY = 200
"""Number of recent samples of a class that its running accuracies cover."""


class RunningTrust(nn.Module):
    r"""Trusts the teacher while it is more accurate than the student, on all samples or class by class.

    .. math:: a = \mathrm{clip}\Big(\frac{A_T - A_S}{\sigma} + \frac12,\ 0,\ 1\Big)

    with :math:`A_T` and :math:`A_S` the accuracies of teacher and student on the last 3,000 training views, or on the
    last 200 views of the sample's class. Trust is 0 once the student leads by :math:`\sigma / 2`. Older samples fade:
    with b new ones, the weight of all before is multiplied by :math:`1 - b / 3000`.

    The same rule weighs labels against the teacher where the two differ. Then the samples are those on which the
    teacher is wrong, and the accuracies are the shares of them on which the student gives the label or the teacher's
    answer.

    Args:
        per_class: keep the accuracies of each class, not those of all samples together.
        width: :math:`\sigma`, how far the accuracies must differ for trust to go from 0 to 1.

    Attributes:
        counts: buffer (3, C), or (3, 1): samples, and how many of them the teacher and the student got right, each
            sample with its present weight.

    Example:
        >>> running = RunningTrust()
        >>> teacher, student = torch.tensor([True, True, False, True]), torch.tensor([True, True, False, False])
        >>> target = torch.tensor([0, 1, 0, 1])
        >>> running.update(running.tally(teacher, student, target))
        >>> running(target)  # 0.75 against 0.5
        tensor([1., 1., 1., 1.])
    """

    counts: Tensor

    def __init__(self, per_class: bool = False, width: float = 0.1) -> None:
        super().__init__()
        self.per_class = per_class
        self.width = width
        self.register_buffer("counts", torch.zeros(3, 0 if per_class else 1))

    def build(self, num_classes: int) -> None:
        """Makes room for the counts of each class, if they are needed and there is none."""
        if self.per_class and not self.counts.shape[1]:
            self.counts = self.counts.new_zeros(3, num_classes)

    def tally(self, teacher: Tensor, student: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """Counts of one batch, which may be summed over ranks.

        Args:
            teacher: (B,) bool, where the teacher is right.
            student: (B,) bool, where the student is right.
            target: (B,) labels.
            known: (B,) bool, the samples that count; ``None`` for all.

        Returns:
            (3, C), or (3, 1), int64.
        """
        counted = torch.ones_like(teacher) if known is None else known
        rows = torch.stack([counted, teacher & counted, student & counted]).long()
        if not self.per_class:
            return rows.sum(1, keepdim=True)
        return rows.new_zeros(self.counts.shape).index_add_(1, target, rows)

    def update(self, tally: Tensor, per_image: int = 1) -> None:
        """Adds the counts of a batch.

        Args:
            tally: of :meth:`tally`, summed over the ranks.
            per_image: how many samples an image has; the memory is of that many times 3,000 or 200.
        """
        memory = per_image * (CLASS_MEMORY if self.per_class else MEMORY)
        self.counts.mul_((1 - tally[0] / memory).clamp_min(0)).add_(tally)

    def forward(self, target: Tensor) -> Tensor:
        """Trust (B,) in the teacher on samples with these labels; ½ where nothing was counted."""
        seen, teacher, student = self.counts.unbind()
        trust: Tensor = ((teacher - student) / seen.clamp_min(1e-6) / self.width + 0.5).clamp(0, 1)
        return trust[target] if self.per_class else trust.expand(len(target))

    def _apply(self, fn: Any, recurse: bool = True) -> RunningTrust:
        counts = self.counts
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        converted = self.counts  # in half precision, which can't count to thousands
        self.counts = counts.to(converted.device, torch.promote_types(converted.dtype, torch.float32))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}counts")
        if isinstance(saved, Tensor) and saved.ndim == 2:
            self.build(saved.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"per_class={self.per_class}, width={self.width}"
