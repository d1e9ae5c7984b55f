"""The strategy on each teacher of an ensemble, before their mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_biaskd.bias.partition import partition
from lightning_biaskd.bias.rows import Rows
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.members import Members, mixture
from lightning_biaskd.networks.outputs import with_logits


def members_of(rows: Rows) -> Members:
    """The answers of each teacher.

    Raises:
        UserError: there is one teacher only.
    """
    if rows.teacher.members is None:
        raise UserError("per_teacher is for the teachers of an EnsembleTeacher, and there is one teacher: leave it out")
    return rows.teacher.members


def without_wrong_teachers(rows: Rows) -> Rows:
    """The same rows, on which teachers that are wrong don't count in the mean, unless all are."""
    members = members_of(rows)
    shares = members.shares(rows.target)
    left = shares * _each(members, rows.target, partition)
    left = torch.where(left.sum(1, keepdim=True) > 0, left, shares)
    logits = mixture(members.logits, left / left.sum(1, keepdim=True), members.temperature)
    return rows._replace(teacher=with_logits(rows.teacher, logits))


def corrected_singly(rows: Rows, correct: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """The mean of answers that are corrected one by one, (N, C).

    Args:
        rows: the batch.
        correct: from logits (N·K, C) of the student and of the teachers, and labels (N·K,), to corrected logits.
    """
    members = members_of(rows)
    student = rows.student.logits.repeat_interleave(members.logits.shape[1], 0)
    logits = _each(members, rows.target, lambda logits, target: correct(student, logits, target))
    return mixture(logits, members.shares(rows.target), members.temperature)


def _each(members: Members, target: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A function of logits and labels for each teacher, (N, K, …)."""
    count = members.logits.shape[1]
    values = function(members.logits.flatten(0, 1), target.repeat_interleave(count))
    return values.view(-1, count, *values.shape[1:])
