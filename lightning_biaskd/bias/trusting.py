"""The part of a strategy that says how far the teacher, and the labels, are trusted."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_biaskd.bias import trust as trust_forms
from lightning_biaskd.bias.partition import partition
from lightning_biaskd.bias.rows import Rows
from lightning_biaskd.bias.running_trust import RunningTrust
from lightning_biaskd.errors import check_share

Trust = Literal["student", "wsld", "bounded", "run", "class"]
LabelTrust = Literal["student", "run"]
_TRUST = {"student": trust_forms.student, "wsld": trust_forms.wsld, "bounded": trust_forms.bounded}


class Trusting(nn.Module):
    """Trust by the present outputs of both networks, or by counts that are kept.

    Args:
        trust: as of :class:`~lightning_biaskd.BiasStrategy`.
        label_trust: as of :class:`~lightning_biaskd.BiasStrategy`.
        discount: as of :class:`~lightning_biaskd.BiasStrategy`.

    Raises:
        UserError: a discount outside [0, 1].
    """

    def __init__(self, trust: Trust | None, label_trust: LabelTrust | None, discount: float) -> None:
        super().__init__()
        check_share(discount=discount)
        self.discount = discount
        self.trust = trust
        self.running = RunningTrust(per_class=trust == "class") if trust in ("run", "class") else None
        self.label_trust = label_trust
        self.running_labels = RunningTrust() if label_trust == "run" else None

    def build(self, num_classes: int) -> None:
        """Makes room for what is kept for each class, before a state dict is loaded or the module is compiled."""
        if self.running is not None:
            self.running.build(num_classes)

    def trust_in(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor | None:
        """Trust (B,) in the teacher on each sample, by what was counted so far if it is running; ``None`` for 1.

        Args:
            student_logits: (B, C).
            teacher_logits: (B, C).
            target: (B,) labels.
        """
        if self.running is not None:
            return cast("Tensor", self.running(target))
        return None if self.trust is None else _TRUST[self.trust](student_logits, teacher_logits, target)

    def label_trust_in(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor | None:
        """Trust (B,) in the label of each sample if the teacher contradicts it; arguments as in :meth:`trust_in`."""
        if self.running_labels is not None:
            return cast("Tensor", self.running_labels(target))
        return None if self.label_trust is None else trust_forms.label(student_logits, teacher_logits, target)

    def label_trust_and_discount(
        self, wrong: Tensor, trust: Tensor | None, amount: Tensor | None, unit: Tensor, shape: torch.Size
    ) -> tuple[Tensor | None, Tensor | None]:
        """``label_trust`` and ``discount`` of :class:`~lightning_biaskd.bias.BiasLoss`.

        Args:
            wrong: (N,) bool, where the teacher contradicts the label.
            trust: (N,) of :meth:`trust_in`.
            amount: (N,) of :meth:`label_trust_in`.
            unit: what one wrong sample adds to a mean over those of all ranks.
            shape: of the labels, of N in all.
        """
        if amount is None:
            return None, None
        mean = torch.where(wrong, amount, 0).sum() * unit
        if not self.discount:
            return mean, None
        lost = 1 - amount if trust is None else trust * (1 - amount)
        return mean, torch.where(wrong, self.discount * lost, 0).view(shape)

    def count(self, right: Tensor, wrong: Tensor, rows: Rows, ranks: int) -> tuple[Tensor, Tensor]:
        """Right and wrong samples of the global batch, which is also added to the running accuracies."""
        keeps = self.running is not None or self.running_labels is not None
        tallies = self._tallies(right, wrong, rows) if self.training and keeps else []
        if not tallies and ranks == 1:
            return right.sum(), wrong.sum()
        counts = torch.cat([torch.stack([right.sum(), wrong.sum()]), *(tally.flatten() for _, tally in tallies)])
        if ranks > 1:
            dist.all_reduce(counts)
        both, *summed = torch.split(counts, [2, *(tally.numel() for _, tally in tallies)])
        for (running, tally), total in zip(tallies, summed, strict=True):
            running.update(total.view_as(tally), rows.per_image)
        return both[0], both[1]

    def _tallies(self, right: Tensor, wrong: Tensor, rows: Rows) -> list[tuple[RunningTrust, Tensor]]:
        """What each running comparison counts of this process's samples."""
        student, target = rows.student.logits.detach(), rows.target
        says_label = partition(student, target)
        tallies = []
        if self.running is not None:
            tallies.append((self.running, self.running.tally(right, says_label, target, rows.known)))
        if self.running_labels is not None:
            says_answer = partition(student, rows.teacher.logits.argmax(1))
            tallies.append((self.running_labels, self.running_labels.tally(says_label, says_answer, target, wrong)))
        return tallies
