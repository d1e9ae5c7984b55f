"""Rows, the unit on which a teacher is right or wrong: images, pixels, tokens or boxes."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.bias.joined_batch import losses_on_joined_batch
from lightning_biaskd.bias.partition import partition
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.members import weighed
from lightning_biaskd.networks.outputs import Outputs, labels_on_grid, resized, with_logits


class Rows(NamedTuple):
    """The outputs of both networks for one batch, as rows.

    Attributes:
        student: logits (N, C), one row for each label.
        teacher: logits (N, C).
        target: (N,) labels; 0 where the label is unknown.
        known: (N,) bool, the rows that have a label; ``None`` if all have.
        shape: of the labels as they came, (B,) or (B, …).
        maps: the outputs of student and teacher as they came.
    """

    student: Outputs
    teacher: Outputs
    target: Tensor
    known: Tensor | None
    shape: torch.Size
    maps: tuple[Outputs, Outputs]

    @property
    def per_image(self) -> int:
        """Rows of one image: 1 in classification, H·W where each pixel has a label."""
        return self.shape[1:].numel()

    def split(self) -> tuple[Tensor, Tensor]:
        """Where the teacher is right, and where it is wrong, (N,) bool each. Rows without a label are neither."""
        right = partition(self.teacher.logits, self.target)
        return (right, ~right) if self.known is None else (right & self.known, ~right & self.known)


def check_same_classes(teacher: Tensor, student: Tensor) -> None:
    """Both networks must give logits (B, C, …) of the same classes.

    Raises:
        UserError: they do not.
    """
    if teacher.shape[1] != student.shape[1]:
        raise UserError(
            f"the teacher gives {teacher.shape[1]} classes and the student {student.shape[1]}: build both for the "
            "same classes, or map the teacher's outputs with teacher_classes"
        )


def on_one_grid(student: Outputs, teacher: Outputs, target: Tensor) -> tuple[Outputs, Tensor]:
    """The teacher's logits and the labels on the student's grid.

    Logits (B, C, H, W) are resized by bilinear interpolation, labels (B, H, W) to the nearest.

    Raises:
        UserError: outputs that can't be brought together, or labels that don't fit them.
    """
    z_s, z_t = student.logits, teacher.logits
    check_same_classes(z_t, z_s)
    if target.is_floating_point() or target.ndim != z_s.ndim - 1:
        _refuse_labels(z_s, target)
    target = target.long()
    if z_t.shape != z_s.shape and z_t.ndim == z_s.ndim:
        if teacher.members is not None:
            raise UserError(
                f"an ensemble of teachers gives maps of size {tuple(z_t.shape[2:])} and the student of "
                f"{tuple(z_s.shape[2:])}: give both networks the same"
            )
        z_t = resized(z_t, z_s.shape[2:])
        teacher = with_logits(teacher, z_t)
    target = labels_on_grid(target, z_s)
    if z_t.shape != z_s.shape or target.shape[1:] != z_s.shape[2:]:
        raise UserError(
            f"the teacher gives logits of shape {tuple(z_t.shape)}, the student {tuple(z_s.shape)}, for labels "
            f"{tuple(target.shape)}: only maps (B, C, H, W) are brought to one size"
        )
    return teacher, target


def rows_of(student: Outputs, teacher: Outputs, target: Tensor, ignore_index: int | None = None) -> Rows:
    """Turns outputs and labels of any shape into rows.

    Args:
        student: logits (B, C) or (B, C, …).
        teacher: logits of the same shape; maps (B, C, H, W) may be of another size.
        target: (B,) or (B, …) labels.
        ignore_index: the label of rows that count nowhere; ``None`` if there is none.

    Raises:
        UserError: as :func:`on_one_grid`.

    Example:
        >>> maps = Outputs(torch.zeros(2, 3, 4, 4))
        >>> rows = rows_of(maps, maps, torch.full((2, 4, 4), 255), ignore_index=255)
        >>> rows.student.logits.shape, int(rows.known.sum())
        (torch.Size([32, 3]), 0)
    """
    teacher, target = on_one_grid(student, teacher, target)
    known = None if ignore_index is None else target != ignore_index
    labels = target if known is None else torch.where(known, target, 0)
    teacher = weighed(teacher, labels)
    flat_known = None if known is None else known.flatten()
    return Rows(_flat(student), _flat(teacher), labels.flatten(), flat_known, target.shape, (student, teacher))


def known_rows(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int | None = None, *values: Tensor
) -> list[Tensor]:
    """Logits (N, C) of both networks, labels (N,) and further values (N,), without the rows whose label is ignored.

    On an accelerator this waits for the device if there is an ``ignore_index``.
    """
    rows = rows_of(Outputs(student), Outputs(teacher), target, ignore_index)
    every = [rows.student.logits, rows.teacher.logits, rows.target, *(value.flatten() for value in values)]
    return every if rows.known is None else [value[rows.known] for value in every]


def row_losses(term: Distiller, rows: Rows, corrected: Tensor | None, keep: Tensor | None, joined: bool) -> Tensor:
    """Losses (N,) of one method, whose mean over the rows that are kept is the method's loss.

    Args:
        term: a single method.
        rows: the batch.
        corrected: (N, C) the teacher's logits after rectification; ``None`` for those in ``rows``.
        keep: (N,) bool, the rows whose teacher outputs may be used; ``None`` for all.
        joined: let pairwise methods compare the samples of all ranks.

    Raises:
        UserError: the method can't work on maps.
    """
    teacher = rows.teacher if corrected is None else with_logits(rows.teacher, corrected)
    if len(rows.shape) == 1 or term.dense == "rows":
        if joined:
            return losses_on_joined_batch(term, rows.student, teacher, rows.target, keep)
        return term(rows.student, teacher, rows.target, keep)
    if term.dense is None:
        raise UserError(
            f"{type(term).__name__} compares images, or reads their embedding or their index, so it has no loss for a "
            "pixel: choose KD, CWD or another method that takes samples one by one"
        )
    student, maps = rows.maps
    kept = None if keep is None else keep.view(rows.shape)
    if term.dense == "maps":
        if corrected is not None:
            maps = with_logits(maps, corrected.view(*rows.shape, -1).movedim(-1, 1))
        per_pixel = term(student, maps, rows.target.view(rows.shape), kept)
        return per_pixel.flatten()
    dropped = None if kept is None else ~(kept if rows.known is None else kept | ~rows.known.view(rows.shape))
    pair = student, maps
    if dropped is not None:
        pair = _without(student, dropped, student.regions), _without(maps, dropped, student.regions)
    per_image = term(*pair, rows.target.view(rows.shape), None)
    return per_image.view(-1, *[1] * (len(rows.shape) - 1)).expand(rows.shape).flatten()


def _refuse_labels(logits: Tensor, target: Tensor) -> NoReturn:
    if target.is_floating_point() and target.shape == logits.shape:
        raise UserError(
            "mixed images have no single label for a teacher to be right on: distil without MixUp and CutMix "
            "(data.mix null), and give one-hot labels as class numbers; multi-label data are not supported"
        )
    wanted, kind = (len(logits), *logits.shape[2:]), str(target.dtype).removeprefix("torch.")
    raise UserError(
        f"logits {tuple(logits.shape)} need integer labels of shape {wanted}, not {kind} of shape {tuple(target.shape)}"
    )


def _flat(outputs: Outputs) -> Outputs:
    logits, members = outputs.logits, outputs.members
    if logits.ndim == 2:
        return outputs
    if members is not None:
        members = members._replace(logits=members.logits.movedim((1, 2), (-2, -1)).flatten(0, -3))
    return Outputs(logits.movedim(1, -1).flatten(0, -2), outputs.features, outputs.embedding, members=members)


def _without(outputs: Outputs, dropped: Tensor, regions: Tensor | None) -> Outputs:
    """Features (B, D, h, w) that are 0 wherever one of the pixels (B, H, W), or of the boxes (B, R), is dropped."""
    features = {
        name: torch.where(_covered(dropped, regions, feature.shape[2:]), 0, feature) if feature.ndim == 4 else feature
        for name, feature in outputs.features.items()
    }
    return Outputs(outputs.logits, features, outputs.embedding, outputs.head, outputs.index)


def _covered(dropped: Tensor, regions: Tensor | None, size: torch.Size) -> Tensor:
    """The cells (B, 1, h, w) of a map that dropped pixels (B, H, W) or boxes (B, R) touch."""
    if regions is None:
        return F.adaptive_max_pool2d(dropped.unsqueeze(1).float(), size) > 0
    rows, columns = (_touched(regions[..., axis::2], count) for axis, count in zip((1, 0), size, strict=True))
    return ((rows * dropped.unsqueeze(2)).transpose(1, 2) @ columns > 0).unsqueeze(1)


def _touched(spans: Tensor, count: int) -> Tensor:
    """Which of ``count`` cells along an axis each span (B, R, 2) touches, (B, R, count)."""
    cell = torch.arange(count, device=spans.device)
    low, high = (count * spans).unsqueeze(2).unbind(-1)
    return ((low < cell + 1) & (high > cell)).float()
