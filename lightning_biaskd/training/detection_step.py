"""One distillation step of a two-stage detector, for any training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_biaskd.bias import BiasStrategy
from lightning_biaskd.bias.boxes import corrected_boxes
from lightning_biaskd.distiller import Distiller, Needs
from lightning_biaskd.distillers import KD
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.tap import FeatureTap
from lightning_biaskd.networks.trace import evaluating
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.training.detectors import (
    IGNORED,
    Answers,
    Sampled,
    answers,
    as_rows,
    box_loss,
    boxes_of,
    check_detector,
    check_pair,
    pyramid,
    sampled,
)
from lightning_biaskd.training.label_loss import of_all_ranks
from lightning_biaskd.training.step import Distillation, Step

_SIDE = 128


class DetectionDistillation(Distillation):
    r"""Student, frozen teacher, method and strategy for torchvision's two-stage detectors, one step in a call.

    The student proposes boxes and samples those on which its box head is trained. The teacher's box head classifies the
    same boxes on the teacher's own maps, so each proposal is a row on which the teacher is right or wrong. On one
    labelled background, the teacher is right if it predicts background. With the detector's own losses
    :math:`L_{box}` and :math:`L_{rpn}`,

    .. math:: L = w_{ce}\,\mathrm{CE}(z^S, y) + L_{box} + L_{rpn} + w_{kd}\, L_{kd} + w_{box}\, L_{box\,kd}

    :math:`L_{box\,kd}` is the loss :math:`L_{box}` with the teacher's boxes in the place of the true ones, as corrected
    by :func:`~lightning_biaskd.bias.boxes.corrected_boxes`.

    Methods that read features get the maps of the pyramids, by their names in torchvision: ``"0"`` is the finest and
    ``"pool"`` the coarsest; numbers below 0 count from the end. Where the teacher is wrong on a proposal with an
    object, the maps are set to 0 in both networks at that place.

    Args:
        student: a Faster R-CNN of torchvision, or of :func:`~lightning_biaskd.models.faster_rcnn`.
        teacher: another, trained, with the same classes, which resizes and normalises images in the same way.
        distiller: the method. The module owns a copy of it, and of ``bias``.
        bias: the strategy; ``None`` for plain distillation.
        ce_weight: :math:`w_{ce}`.
        kd_weight: :math:`w_{kd}`.
        box_weight: :math:`w_{box}`.

    Raises:
        UserError: networks that are no two-stage detectors, or that differ in classes or in how they take images; or a
            method that has no loss for boxes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distiller: Distiller = KD(),  # noqa: B008  (copied by the base class)
        bias: BiasStrategy | None = BiasStrategy(),  # noqa: B008
        ce_weight: float = 1.0,
        kd_weight: float = 0.5,
        box_weight: float = 0.5,
    ) -> None:
        frozen = FrozenTeacher.of(teacher)
        if len(frozen.members) > 1:
            raise UserError("an ensemble of teachers has no maps on which one box head judges: give one detector")
        for network in (student, frozen.model):
            check_detector(network)
        check_pair(student, frozen.model)
        for term, _ in distiller.terms():
            if term.dense not in ("rows", "images"):
                raise UserError(
                    f"{type(term).__name__} compares images or the positions of a map, so it has no loss for a box: "
                    "choose KD, PKD or another method that takes samples one by one"
                )
        super().__init__(student, frozen, distiller, bias, ce_weight, kd_weight, ignore_index=IGNORED)
        self.box_weight = box_weight
        if self.needs_rehearsal:
            self.rehearse()

    def forward(  # type: ignore[override]
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], index: Tensor | None = None
    ) -> Step:
        """One training step.

        Args:
            images: B tensors (3, H, W) in [0, 1].
            targets: B mappings with ``boxes`` (n, 4) as (x1, y1, x2, y2) in pixels and ``labels`` (n,) from 1.
            index: (B,) the index of each image in its data set, for methods that draw random numbers for each.

        Returns:
            The loss, what to log, and the outputs of both networks, (B, C, R) for R proposals per image.
        """
        found, own = sampled(self.student, images, targets)
        with torch.no_grad():
            judged = answers(self.teacher.model, pyramid(self.teacher.model, found.images), found)
        return self.step_of(found, own, judged, index)

    def step_of(self, found: Sampled, own: Answers, judged: Answers, index: Tensor | None = None) -> Step:
        """Computes the step from what both box heads say of the same proposals.

        Args:
            found: the proposals.
            own: the student's answers.
            judged: the teacher's answers.
            index: as in :meth:`forward`.
        """
        needs = self.distiller.needs
        student, labels = as_rows(self.student, own, found, needs.layers)
        teacher, _ = as_rows(self.student, judged, found, needs.teacher_layers)
        step = self.step(student, teacher, labels, index)
        flat, proposals, deltas = (torch.cat(parts) for parts in (found.labels, found.proposals, found.deltas))
        counted = torch.ones_like(flat, dtype=torch.bool)
        box = of_all_ranks(box_loss(own, flat, deltas), counted)
        corrected, used = self._corrected(own, judged, flat, proposals, deltas)
        box_kd = of_all_ranks(box_loss(own, torch.where(used, flat, 0), corrected), counted)
        loss = step.loss + box + sum(found.losses.values()) + self.box_weight * box_kd
        parts = {"box": box, "box_kd": box_kd, **{name.removeprefix("loss_"): x for name, x in found.losses.items()}}
        logged = {"train/loss": loss, **{f"train/loss_{name}": value for name, value in parts.items()}}
        logged = {**step.logged, **{name: value.detach() for name, value in logged.items()}}
        return step._replace(loss=loss, logged=logged, target=labels)

    @torch.no_grad()
    def _corrected(
        self, own: Answers, judged: Answers, labels: Tensor, proposals: Tensor, deltas: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the student's boxes are to learn (N, 4), relative to the proposals, and where (N,)."""
        coder: Any = self.student.roi_heads.box_coder  # type: ignore[union-attr]
        truth = coder.decode_single(deltas, proposals)
        theirs = boxes_of(self.teacher.model, judged.deltas, labels, proposals)
        boxes = boxes_of(self.student, own.deltas, labels, proposals)
        mode = self.bias.mode if isinstance(self.bias, BiasStrategy) else "none"
        corrected, used = corrected_boxes(theirs, boxes, truth, mode)
        return coder.encode_single(corrected, proposals), used

    def rehearse(self, input: Any = None, num_samples: int | None = None) -> None:
        """Builds what the method learns, from the maps of an empty image."""
        parameter = next(self.student.parameters())
        image = parameter.new_zeros(1, 3, _SIDE, _SIDE)
        box = image.new_tensor([[0, 0, _SIDE / 2, _SIDE / 2]])
        place = Sampled(image, [(_SIDE, _SIDE)], [box], [torch.ones(1, dtype=torch.long)], [box], {})
        needs = self.distiller.needs
        with torch.no_grad(), evaluating(self.student):
            student, teacher = (
                as_rows(self.student, answers(network, pyramid(network, image), place), place, layers)[0]
                for network, layers in ((self.student, needs.layers), (self.teacher.model, needs.teacher_layers))
            )
            self.distiller.build(student, teacher)
        if isinstance(self.bias, BiasStrategy):
            self.bias.build(student.logits.shape[1])

    def _tapped(self, student: nn.Module, frozen: FrozenTeacher, needs: Needs) -> tuple[FrozenTeacher, FeatureTap]:
        """Both networks without hooks, as their maps are at hand."""
        return frozen, FeatureTap(student)
