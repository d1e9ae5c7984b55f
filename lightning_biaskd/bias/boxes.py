"""Box regression: which box the student is trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_biaskd.bias.rectify import Mode


def corrected_boxes(teacher: Tensor, student: Tensor, truth: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """The box that a student learns in place of the teacher's.

    A teacher's box is right where its intersection over union with the true box exceeds that of the student's box.

    Args:
        teacher: (N, 4) boxes as (x1, y1, x2, y2).
        student: (N, 4) boxes for the same proposals.
        truth: (N, 4) boxes of the objects.
        mode: of the strategy. ``"none"`` takes all boxes of the teacher and ``"drop"`` only the right ones. All others
            put the true box in the place of a wrong one.

    Returns:
        Boxes (N, 4), and which of them are used, (N,) bool.

    Example:
        >>> truth = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).expand(2, 4)
        >>> teacher = torch.tensor([[0.0, 0.0, 4.0, 3.0], [0.0, 0.0, 4.0, 1.0]])
        >>> corrected_boxes(teacher, truth / 2, truth, "swap")[0][:, 3]  # the second is no better than the student's
        tensor([3., 4.])
    """
    right = box_iou_of_pairs(teacher, truth) > box_iou_of_pairs(student, truth)
    if mode == "none":
        return teacher, torch.ones_like(right)
    if mode == "drop":
        return teacher, right
    return torch.where(right[:, None], teacher, truth), torch.ones_like(right)


def box_iou_of_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N,) of each box of ``a`` (N, 4) with the box of ``b`` in the same row."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    areas = [(box[:, 2:] - box[:, :2]).clamp_min(0).prod(1) for box in (torch.cat([low, high], 1), a, b)]
    return areas[0] / (areas[1] + areas[2] - areas[0]).clamp_min(torch.finfo(a.dtype).tiny)
