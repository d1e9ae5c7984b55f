"""One distillation step, for any training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from lightning_biaskd.bias import BiasLoss, BiasStrategy, Plain, cosine
from lightning_biaskd.bias.rows import on_one_grid
from lightning_biaskd.distiller import Distiller, Needs
from lightning_biaskd.distillers import KD
from lightning_biaskd.errors import UserError, check_share, check_weights
from lightning_biaskd.networks.inputs import InputConversion
from lightning_biaskd.networks.members import weighed
from lightning_biaskd.networks.named_inputs import Input, check_vocabularies, converted, one_of
from lightning_biaskd.networks.outputs import Outputs, with_index
from lightning_biaskd.networks.tap import FeatureTap
from lightning_biaskd.networks.trace import evaluating
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.training.fixed_parts import FixedParts
from lightning_biaskd.training.label_loss import accuracy, checked_rows, cross_entropy, mean_of_known


class Step(NamedTuple):
    """The result of one training step.

    Attributes:
        loss: the scalar to minimise.
        logged: detached scalars, by the names under which they are logged.
        student: the outputs of the trained network. They have gradients, so you can add further loss terms.
        teacher: the teacher's outputs, without gradient; ``None`` where there is no teacher.
        trust: (B,) the share of its weight that the teacher keeps on each sample, see
            :class:`~lightning_biaskd.BiasLoss`; ``None`` where no sample is weighed.
        target: labels of the samples, (B, R) of sampled proposals; ``None`` if they are the batch's own labels.
    """

    loss: Tensor
    logged: dict[str, Tensor]
    student: Outputs
    teacher: Outputs | None = None
    trust: Tensor | None = None
    target: Tensor | None = None


class Distillation(FixedParts):
    r"""Student, frozen teacher, method and strategy as one module whose forward is a training step.

    .. math:: L = w_{ce}\,\mathrm{CE}(z^S, y) + w_{kd}\, L_{kd}

    where :math:`L_{kd}` is the loss of ``distiller`` under the strategy ``bias``. The module works in any loop: plain
    PyTorch, Fabric and the Hugging Face ``Trainer``. For Lightning's Trainer, use
    :class:`~lightning_biaskd.DistillationModule`. The parameters of the module are those of the student and of the
    method. Optimizers, checkpoints and DDP see no parameters of the teacher.

    Args:
        student: any network from inputs to logits (B, C).
        teacher: a trained network with the same classes, a :class:`~lightning_biaskd.FrozenTeacher`, or several as an
            :class:`~lightning_biaskd.EnsembleTeacher`.
        distiller: the method. The module owns a copy of it, and of ``bias``.
        bias: the strategy; ``None`` for plain distillation.
        ce_weight: :math:`w_{ce}`.
        kd_weight: :math:`w_{kd}`.
        label_smoothing: smoothing of the cross-entropy's labels, in [0, 1].
        convert: converts the inputs to the student's training format; ``None`` if they already have it.
        ignore_index: the label of pixels, tokens or images that count nowhere; ``None`` if there is none.

    Raises:
        UserError: teacher and student share parameters or read different vocabularies, a tapped layer is unknown, or a
            weight is negative; in ``forward``, teacher and student disagree on the classes.

    Example:
        >>> from lightning_biaskd.models import resnet8, resnet14
        >>> distillation = Distillation(resnet8(10), resnet14(10))
        >>> step = distillation(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
        >>> step.loss.requires_grad, sorted(step.logged)[:2], step.teacher.logits.shape
        (True, ['bias/label_trust', 'bias/trust'], torch.Size([4, 10]))
    """

    fixed_parts: ClassVar[tuple[str, ...]] = ("student", "teacher", "distiller")

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distiller: Distiller = KD(),  # noqa: B008  (copied below)
        bias: BiasStrategy | None = BiasStrategy(),  # noqa: B008
        ce_weight: float = 1.0,
        kd_weight: float = 0.5,
        label_smoothing: float = 0.0,
        convert: InputConversion | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        frozen = FrozenTeacher.of(teacher)
        if {id(p) for p in frozen.model.parameters()} & {id(p) for p in student.parameters()}:
            raise UserError("teacher and student share parameters: give the teacher a network of its own")
        for member in frozen.members:
            check_vocabularies(student, member.model)
        self.student = student
        self.teacher, self._tap = self._tapped(student, frozen, distiller.needs)
        self.distiller = copy.deepcopy(distiller)
        self.bias = Plain() if bias is None else copy.deepcopy(bias)
        if not isinstance(self.bias, BiasStrategy | Plain):
            raise UserError(f"bias is a BiasStrategy, or None for plain distillation, and not {bias!r}")
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        check_share(label_smoothing=label_smoothing)
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.label_smoothing = label_smoothing
        self.convert = convert
        self.ignore_index = ignore_index

    def forward(self, input: Input, target: Tensor, index: Tensor | None = None) -> Step:
        """One training step.

        Args:
            input: (B, …), or named tensors that both networks take as keyword arguments, such as ``input_ids`` and
                ``attention_mask``.
            target: (B,) labels, or (B, …) of pixels or tokens.
            index: (B,) the index of each input in its data set, for methods with a memory.

        Returns:
            The loss, what to log, and both networks' outputs.
        """
        teacher = self.teacher.queue(input)
        student = self.outputs_of(input)
        self.teacher.join(one_of(input).device)
        return self.step(student, teacher, target, index)

    def outputs_of(self, input: Input) -> Outputs:
        """The student's outputs; their logits are those of the network to deploy."""
        return self.distiller.outputs_of(self._student_outputs(input))

    def step(self, student: Outputs, teacher: Outputs, target: Tensor, index: Tensor | None = None) -> Step:
        """Computes the step from the outputs of both networks, for example with cached outputs of the teacher."""
        teacher, target = on_one_grid(student, teacher, target)
        if index is not None:
            student = with_index(student, index)
        rows = checked_rows(self.cross_entropy(student.logits, target), student.logits)
        kd = self.bias(self.distiller, student, teacher, target, self.ignore_index)
        if teacher.members is not None:  # as the strategy did
            teacher = weighed(teacher, target if kd.known is None else torch.where(kd.known, target, 0))
        ce = _mean(rows, kd)
        loss = self.ce_weight * ce + self.kd_weight * kd.total
        if (change := self._weight_change(kd)) is not None:
            if rows.ndim == 0:
                raise UserError(
                    "your cross_entropy gives a mean, but refund and discount weigh each sample: return the "
                    "losses (B,), with reduction='none', or set bias.refund false and bias.discount 0"
                )
            loss = loss + _mean(change * rows, kd)
        logged = {
            "train/loss": loss,
            "train/loss_ce": ce,
            "train/loss_kd": kd.total,
            "train/acc1": accuracy(student.logits, target, kd.known),
            **self.bias.logged(kd),
        }
        return Step(loss, {name: value.detach() for name, value in logged.items()}, student, teacher, kd.trust)

    def _weight_change(self, kd: BiasLoss) -> Tensor | None:
        """By how much the cross-entropy of each sample weighs more or less than ``ce_weight``; ``None`` for nothing."""
        refund = isinstance(self.bias, BiasStrategy) and self.bias.refund
        gained = self.kd_weight * (1 - cast("Tensor", kd.trust)) if refund else None
        if kd.discount is None or not self.kd_weight:
            return gained
        lost = self.ce_weight * kd.discount
        return -lost if gained is None else gained - lost

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy (B, …) of the student's logits (B, C, …) with each label (B, …); 0 for ``ignore_index``."""
        return cross_entropy(logits, target, self.label_smoothing, self.ignore_index)

    @property
    def needs_rehearsal(self) -> bool:
        """Whether features are read, or the method or the strategy has something to build; else rehearsing is void."""
        method = self.distiller
        builds = isinstance(self.bias, BiasStrategy) and self.bias.trust == "class"
        return builds or method.builds or bool(method.needs.layers) or method.needs.embedding

    def rehearse(self, input: Input, num_samples: int | None = None) -> None:
        """Runs both networks once, so that features are found and adapters built before the optimizer is made.

        Only methods that read features or learn parameters need this, and the trust of each class. For all others, it
        has no effect.

        Args:
            input: (B, …), or named tensors, a few inputs as a training step gets them.
            num_samples: size of the data set that ``index`` counts, for methods with a memory.
        """
        parameter = next(self.student.parameters())
        input = converted(input, parameter.dtype, parameter.device)
        with torch.no_grad(), evaluating(self.student):
            student = self._student_outputs(input)
            self.distiller.build(student, self.teacher(input), num_samples)
            if isinstance(self.bias, BiasStrategy):
                self.bias.build(student.logits.shape[1])
            self.deployed()  # what can't be deployed is refused now, not after training

    def set_progress(self, epoch: int, epochs: int, schedule: Callable[[float], float] = cosine) -> None:
        """Updates what depends on the epoch: γ of the strategy, and the method's warm-up and schedules.

        Args:
            epoch: 0-based.
            epochs: E, the number of epochs.
            schedule: γ(t) with t = epoch / E.
        """
        self.distiller.set_epoch(epoch)
        if isinstance(self.bias, BiasStrategy):
            self.bias.gamma.fill_(schedule(epoch / epochs))

    def deployed(self) -> nn.Module:
        """The network to deploy, inputs to logits.

        This is the student itself. Methods such as :class:`~lightning_biaskd.distillers.SimKD` return a copy with
        another classifier.
        """
        return self.distiller.deployed(self._tap)

    def _tapped(self, student: nn.Module, frozen: FrozenTeacher, needs: Needs) -> tuple[FrozenTeacher, FeatureTap]:
        """Teacher and student with the features that the method reads."""
        tap = FeatureTap(student, needs.layers, needs.embedding)
        return frozen.reading(needs.teacher_layers, needs.embedding), tap

    def _student_outputs(self, input: Input) -> Outputs:
        return self._tap(input if self.convert is None else self.convert(input))


def _mean(losses: Tensor, kd: BiasLoss) -> Tensor:
    """Mean over the known samples of all ranks, as DDP averages."""
    if kd.known is None:
        return losses.mean()
    return mean_of_known(losses, kd.known) * (kd.known.sum() * cast("Tensor", kd.unit))
