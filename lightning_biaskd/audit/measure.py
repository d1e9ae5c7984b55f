"""One pass of the teacher over the training data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchmetrics import Metric

from lightning_biaskd.audit.report import AuditReport, ClassBias, Correction, Mistake
from lightning_biaskd.audit.trust import ClassTrust
from lightning_biaskd.bias.partition import partition
from lightning_biaskd.bias.rectify import CORRECTIONS, rectify_logits
from lightning_biaskd.bias.rows import known_rows
from lightning_biaskd.bias.strategy import BiasStrategy
from lightning_biaskd.distributed.padding import flattened, unpadded_rows
from lightning_biaskd.errors import UserError
from lightning_biaskd.metrics import BiasRate, CalibrationError, NotOnTop, confused_pairs
from lightning_biaskd.metrics.class_names import class_names_of
from lightning_biaskd.metrics.meters import Meters
from lightning_biaskd.networks.members import weighed
from lightning_biaskd.networks.outputs import at_least_float32, resized
from lightning_biaskd.training.batches import labelled
from lightning_biaskd.training.checks import check_labels, check_teacher
from lightning_biaskd.training.distillation import DistillationModule
from lightning_biaskd.training.passes import QUIET, TeacherPass
from lightning_biaskd.training.untrained_teacher import warn_of_untrained

BINS = 20
SHOWN = 4


def audit(module: LightningModule, datamodule: LightningDataModule, trainer: Trainer | None = None) -> AuditReport:
    """Runs the teacher on the training data, augmented as in training, and reports where it is wrong.

    Nothing is trained or changed. With several processes each image is counted once, and every process gets the report.

    Args:
        module: a :class:`~lightning_biaskd.DistillationModule`, of any method and strategy.
        datamodule: the data that it would be trained on.
        trainer: determines the device, the precision and the number of passes (its ``max_epochs``); it should neither
            log nor save. ``None`` for one pass on the available device, in 32-true.

    Returns:
        The report; ``print(report)``, ``report.save("folder")``.

    Raises:
        UserError: the module has no teacher; the teacher's logits are not finite or of another number of classes than
            the data; labels out of range.

    Example:
        >>> from lightning_biaskd.data import DigitsDataModule
        >>> from lightning_biaskd.models import resnet8
        >>> teacher = resnet8(num_classes=10, in_channels=1)
        >>> module = DistillationModule(resnet8(10, 1), teacher, teacher_weights="builtin:digits_resnet8")
        >>> quiet = Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_progress_bar=False, **QUIET)
        >>> report = audit(module, DigitsDataModule(), quiet)
        >>> report.views, f"{report.wrong_rate:.0%}"
        (1131, '6%')
    """
    if not isinstance(module, DistillationModule):
        raise UserError(
            f"audit looks at the teacher of images, pixels or texts, not at a {type(module).__name__}: name a "
            "DistillationModule"
        )
    trainer = trainer or Trainer(max_epochs=1, devices=1, **QUIET)
    module.connect_data(datamodule)
    auditor = _Auditor(module, getattr(datamodule, "num_classes", None))
    trainer.fit(auditor, datamodule=datamodule)
    if not auditor.values:
        raise UserError("audit gets nothing back from processes that Lightning spawns: use the ddp strategy")
    report = _report(module, auditor, datamodule, trainer.fit_loop.max_epochs or 1)
    warn_of_untrained(module.teacher, 1 - report.wrong_rate, len(report.classes))
    return report


class _Confidence(Metric):
    """Histograms of the teacher's confidence on right and on wrong views, and its probability of the label on these."""

    full_state_update = False
    histogram: Tensor
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("histogram", torch.zeros(2, BINS, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(4), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        p = at_least_float32(logits).softmax(1)
        wrong, confidence, label = ~partition(logits, target), p.amax(1), p.gather(1, target.unsqueeze(1)).squeeze(1)
        place = wrong.long() * BINS + (confidence * BINS).long().clamp_max(BINS - 1)
        self.histogram.view(-1).index_add_(0, place, torch.ones_like(place))
        second = wrong & ((p > label.unsqueeze(1)).sum(1) == 1)
        parts = ((confidence, ~wrong), (confidence, wrong), (label, wrong), (torch.ones_like(label), second))
        self.sums += torch.stack([(values * mask).sum() for values, mask in parts]).float()

    def compute(self) -> tuple[Tensor, list[float]]:
        n_right, n_wrong = self.histogram.sum(1)
        return self.histogram, (self.sums / torch.stack([n_right, n_wrong, n_wrong, n_wrong])).tolist()


class _Moved(Metric):
    """Mean total variation distance between the teacher's distributions before and after rectification."""

    full_state_update = False
    moved: Tensor
    seen: Tensor

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.add_state("moved", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, rectified: Tensor) -> None:
        before, after = ((at_least_float32(z) / self.temperature).softmax(1) for z in (logits, rectified))
        self.moved += (after - before).abs().sum().float() / 2
        self.seen += len(logits)

    def compute(self) -> Tensor:
        return self.moved / self.seen


class _Auditor(TeacherPass):
    """Counts where the teacher is wrong on the batches that a student would be trained on."""

    def __init__(self, module: DistillationModule, num_classes: int | None) -> None:
        super().__init__(module, num_classes)
        self.automatic_optimization = False
        self.ignore_index = module.ignore_index
        self.space = module.bias.space if isinstance(module.bias, BiasStrategy) else "probs"
        self.temperatures = sorted(
            {float(term.temperature) for term, _ in module.distiller.terms() if term.reads == "logits"}
        )
        self.meters = Meters()
        trusts = isinstance(module.bias, BiasStrategy) and module.bias.trust is not None
        self.trust = ClassTrust(module, self.meters) if trusts else None
        self.values: dict[str, Any] = {}
        self.maps: tuple[Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def training_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        image, target = labelled(batch, batch_idx)[:2]
        outputs = self.teacher(image)
        # copies on the CPU, so that the values of every batch are checked
        logits = resized(outputs.logits, target.shape[1:])
        classes = self.num_classes or logits.shape[1]
        check_labels(target.cpu(), logits, classes, batch_idx, "the teacher", self.ignore_index)
        check_teacher(logits.cpu(), logits, batch_idx)
        if outputs.members is not None:  # which labels may weigh
            known = target if self.ignore_index is None else torch.where(target == self.ignore_index, 0, target)
            logits = resized(weighed(outputs, known).logits, target.shape[1:])
        if self.maps is None and isinstance(image, Tensor) and logits.ndim == 4:
            self.maps = image[:SHOWN].cpu(), logits[:SHOWN].cpu(), target[:SHOWN].cpu()
        own = self._own(len(target), batch_idx).to(target.device)
        logits, target = logits[own], target[own]
        if self.trust is not None:
            self.trust.count(image, own, logits, target)
        _, logits, target = known_rows(logits, logits, target, self.ignore_index)
        self.meters.update("bias", lambda: BiasRate(logits.shape[1]), logits, target)
        self.meters.update("confidence", _Confidence, logits, target)
        self.meters.update("calibration", lambda: CalibrationError(logits.shape[1]), logits, target)
        for mode, tau in product(CORRECTIONS, self.temperatures):
            rectified = rectify_logits(logits, target, mode, tau, self.space)
            self.meters.update(f"not on top {mode} {tau}", NotOnTop, logits, rectified, target)
            self.meters.update(f"moved {mode} {tau}", partial(_Moved, tau), logits, rectified)

    def _own(self, rows: int, batch_idx: int) -> Tensor:
        """Which rows count: all except those that a DistributedSampler adds to make the processes' shares equal."""
        loader = flattened(self.trainer.train_dataloader)[0]
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, DistributedSampler) or not loader.batch_size:
            return torch.ones(rows, dtype=torch.bool)
        size = int(loader.batch_size)
        images = min(size, len(sampler) - batch_idx * size)  # each may occur in several views
        return torch.arange(rows) % images < unpadded_rows(loader, batch_idx, images)

    def on_train_end(self) -> None:
        self.values = self.meters.compute()


def _report(module: DistillationModule, auditor: _Auditor, datamodule: Any, passes: int) -> AuditReport:
    values = auditor.values
    bias = module.bias if isinstance(module.bias, BiasStrategy) else None
    found = {name: value.cpu() for name, value in values["bias"].items()}
    seen, per_class = found["seen"].tolist(), found["per_class"].tolist()
    names = class_names_of(datamodule, len(seen)) or [str(number) for number in range(len(seen))]
    views, right = sum(seen), int(found["right"].sum())
    trust = [math.nan] * len(seen) if auditor.trust is None else auditor.trust.of_classes(values).tolist()
    histogram, (sure_right, sure_wrong, label, second) = values["confidence"]
    corrections = [
        Correction(mode, tau, *(float(values[f"{what} {mode} {tau}"]) for what in ("not on top", "moved")))
        for tau, mode in product(auditor.temperatures, CORRECTIONS)
    ]
    return AuditReport(
        teacher=module.teacher.extra_repr(),
        method=" ".join(repr(module.distiller).split()),
        strategy=repr(bias) if bias is not None else None,
        mode=bias.mode if bias is not None else None,
        normalize=bias.normalize if bias is not None else None,
        balance=bias.balance if bias is not None else None,
        label_trust=bias.label_trust if bias is not None else None,
        per_teacher=bias is not None and bias.per_teacher,
        passes=passes,
        views=views,
        wrong=views - right,
        confidence_right=sure_right,
        confidence_wrong=sure_wrong,
        label_when_wrong=label,
        label_second=second,
        calibration_error=float(values["calibration"]),
        histogram_right=histogram[0].tolist(),
        histogram_wrong=histogram[1].tolist(),
        classes=[ClassBias(*row) for row in zip(names, seen, per_class, trust, strict=True)],
        mistakes=[
            Mistake(names[pair.label], names[pair.answer], pair.samples, pair.share)
            for pair in confused_pairs(found["confusion"], len(seen) ** 2)
        ],
        corrections=corrections,
        maps=None if auditor.maps is None else (*auditor.maps, module.ignore_index),
    )
