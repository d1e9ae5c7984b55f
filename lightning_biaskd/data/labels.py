"""Conversion of labels to int64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_biaskd.errors import UserError


def class_numbers(given: Any, whose: str) -> Tensor:
    """Labels (N,) int64 from integers of any type, (N,) or (N, 1).

    Args:
        given: a tensor, or what ``torch.as_tensor`` takes.
        whose: named in the error, such as ``"the labels of this batch"``.

    Raises:
        UserError: labels that aren't integers, or one-hot.

    Example:
        >>> class_numbers(torch.tensor([[3], [1]], dtype=torch.uint8), "the labels")
        tensor([3, 1])
    """
    target: Tensor = torch.as_tensor(given)
    if target.is_floating_point() or target.is_complex():
        raise UserError(f"{whose} are {_kind(target)}: give integers (N,), the numbers of the classes")
    if target.ndim == 2 and target.shape[1] == 1:
        target = target.squeeze(1)
    if target.ndim == 2:
        raise UserError(
            f"{whose} are {_kind(target)}: give the numbers of the classes (N,), of one-hot labels argmax(1)"
        )
    return target.long()


def _kind(target: Tensor) -> str:
    return f"{str(target.dtype).removeprefix('torch.')} of shape {tuple(target.shape)}"
