"""Distilling a student from a teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torchmetrics import MetricCollection

from lightning_biaskd.bias import BiasStrategy, partition
from lightning_biaskd.bias.joined_batch import losses_on_joined_batch
from lightning_biaskd.data.batch import Batch
from lightning_biaskd.distillers import KD, Distiller
from lightning_biaskd.distributed.sharding import average_gradients, broadcast_from_first, shard
from lightning_biaskd.errors import UserError
from lightning_biaskd.metrics import BeyondTeacher
from lightning_biaskd.networks.class_map import ClassMap
from lightning_biaskd.networks.inputs import InputSpec, conversion, warn_of_pretrained
from lightning_biaskd.networks.outputs import Outputs, with_sample
from lightning_biaskd.networks.tap import FeatureTap, evaluating
from lightning_biaskd.teachers.backends import Backend, Precision
from lightning_biaskd.teachers.cache import TeacherCache
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.teachers.stream import beside, join
from lightning_biaskd.training.checks import check_samples, check_teacher, check_views
from lightning_biaskd.training.classification import ClassificationModule, accuracy
from lightning_biaskd.training.dynamic_weights import DynamicWeights
from lightning_biaskd.training.rehearsal import some_images

__all__ = ["ClassificationModule", "DistillationModule"]


class DistillationModule(ClassificationModule):
    r"""Trains a student under a frozen teacher, bias-aware unless told otherwise.

    .. math:: L = w_{ce}\,\mathrm{CE}(z^S, y) + w_{kd}\, L_{kd}

    with :math:`L_{kd}` the total of ``bias`` around ``distiller``, or the plain mean of ``distiller`` when ``bias`` is
    ``None``. A :class:`~lightning_biaskd.callbacks.DynamicWeights` callback is added if the Trainer has none.

    Beside the keys of :class:`ClassificationModule` (which are the student's):

    ======================== ===================================================================
    key                      meaning
    ======================== ===================================================================
    ``train/loss_kd``        the distillation term, mean of the epoch
    ``train/loss_right``     its part of right samples, before dynamic weighting
    ``train/loss_rectified`` its part of wrong samples, likewise
    ``bias/wrong_rate``      share of training views that the teacher gets wrong
    ``bias/gamma``           γ, the weight of hard knowledge
    ``val/teacher_acc1``     the teacher's top-1 accuracy; ``acc5`` and ``test/`` likewise
    ``val/gap``              student's top-1 less teacher's: above 0, the student is ahead
    ``val/student_only``     number of images that only the student gets right; beside it
                             ``teacher_only``, ``both`` and ``neither``, and ``test/`` likewise
    ======================== ===================================================================

    Args:
        student: any network that takes images and gives logits (B, C).
        teacher: a trained network with the same classes, or a :class:`~lightning_biaskd.FrozenTeacher`.
        distiller: the method. The module owns a copy of it, and of ``bias``.
        bias: the strategy, ``None`` for plain distillation.
        ce_weight: :math:`w_{ce}`.
        kd_weight: :math:`w_{kd}`.
        student_weights: the student's initial weights, as ``weights`` of :class:`ClassificationModule`.
        teacher_weights: the teacher's weights, see :func:`~lightning_biaskd.models.load_weights`.
        student_input: what the student is trained to see, as ``model_input`` of :class:`ClassificationModule`.
        teacher_input: what the teacher was trained to see, likewise: its mean and standard deviation, resolution, and
            grey or colour may differ from the data's and from the student's.
        teacher_classes: for each of the data set's classes, the teacher's output that stands for it, -1 for none;
            ``None`` where they are the same. See :class:`~lightning_biaskd.networks.class_map.ClassMap`.
        teacher_backend: how the teacher is run: ``"plain"``, ``"fast"`` (the default), ``"compile"`` or
            ``"onnxruntime"``, see :func:`~lightning_biaskd.teachers.backends.accelerate`.
        teacher_precision: ``"32"``, ``"bf16"`` or ``"16"``, of its weights and arithmetic; ``None`` for the Trainer's.
        teacher_stream: on a GPU, queue the teacher's work on a stream of its own, beside the student's forward.
        teacher_cache: where the teacher's answers are kept, a folder or a :class:`~lightning_biaskd.TeacherCache`;
            ``None`` asks the teacher every time.
        **kwargs: ``label_smoothing``, ``optimizer``, ``lr_scheduler``, ``lr_interval``, ``lr_batch_size``,
            ``data_input``, ``channels_last``, ``compile`` and ``metrics``, as of the base class. What is compiled is
            student, teacher and loss.

    Raises:
        UserError: teacher and student share parameters; weights that don't fit; in training, teacher and student that
            disagree on the classes, or NaN in the teacher's logits.

    Example:
        >>> from lightning_biaskd.models import resnet8, resnet14
        >>> module = DistillationModule(resnet8(10), resnet14(10))
        >>> sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in resnet8(10).parameters())
        True
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distiller: Distiller = KD(),  # noqa: B008  (copied below, and read by the command line as the default)
        bias: BiasStrategy | None = BiasStrategy(),  # noqa: B008
        ce_weight: float = 0.5,
        kd_weight: float = 0.5,
        student_weights: str | None = None,
        teacher_weights: str | None = None,
        student_input: InputSpec | Literal["pretrained"] | None = None,
        teacher_input: InputSpec | Literal["pretrained"] | None = None,
        teacher_classes: Sequence[int] | None = None,
        teacher_backend: Backend | None = None,
        teacher_precision: Precision | None = None,
        teacher_stream: bool = False,
        teacher_cache: TeacherCache | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=student, weights=student_weights, model_input=student_input, **kwargs)
        self.hparams.pop("weights", None)  # student_weights, here
        self.distiller = copy.deepcopy(distiller)
        self.bias = copy.deepcopy(bias)
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.teacher_stream = teacher_stream
        network = teacher.model if isinstance(teacher, FrozenTeacher) else teacher
        if {id(p) for p in network.parameters()} & {id(p) for p in student.parameters()}:
            raise UserError("teacher and student share parameters: give the teacher a network of its own")
        given = teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher)
        self.teacher = FrozenTeacher(
            network,
            teacher_weights,
            distiller.teacher_layers,
            distiller.embedding,
            conversion(network, teacher_input, self.data_input) or given.convert,
            given.classes if teacher_classes is None else ClassMap(teacher_classes),
            teacher_backend or given.backend,
            teacher_precision or given.precision,
        )
        self._teacher_as_built = teacher_weights is None
        self._tap = FeatureTap(student, distiller.layers, distiller.embedding)
        self._rehearsed: dict[str, Any] | None = None
        self._epoch = -1
        self._sharded = False
        self.teacher_cache = TeacherCache(teacher_cache) if isinstance(teacher_cache, str) else teacher_cache
        if self.teacher_cache is not None and (distiller.teacher_layers or distiller.embedding):
            raise UserError(f"{type(distiller).__name__} reads the teacher's features, and a cache holds logits alone")

    @property
    def student(self) -> nn.Module:
        """The network that is trained; alone, with clean names."""
        return self.model

    def deployed(self) -> nn.Module:
        """The network to deploy, images to logits.

        That is the student, but for methods such as :class:`~lightning_biaskd.distillers.SimKD`, which give a copy of
        it another classifier.
        """
        return self.distiller.deployed(self._tap)

    def answer(self, image: Tensor) -> Outputs:
        """The student's outputs on images (B, …); its logits are those of the network to deploy."""
        return self.distiller.answer(super().answer(image))

    def losses(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor]:
        """See :class:`ClassificationModule`."""
        target = batch[1]
        if target.ndim != 1:
            raise UserError(
                "mixed images have no single label for a teacher to be right on: distil without MixUp and CutMix "
                "(data.mix null)"
            )
        teacher, student = self.ask_both(batch)
        self.check_batch(batch_idx, target, student.logits)
        self.check_teacher(batch_idx, student, teacher)
        if (views := max(term.views for term, _ in self.distiller.terms())) > 1:
            check_views(batch[2] if len(batch) > 2 else None, views, batch_idx)
        if self.distiller.remembers:
            student = with_sample(student, self.sample(batch, batch_idx))
        ce = self.cross_entropy(student.logits, target)
        kd, parts = self.distillation_loss(student, teacher, target)
        return {
            "train/loss": self.ce_weight * ce + self.kd_weight * kd,
            "train/loss_ce": ce,
            "train/loss_kd": kd,
            "train/acc1": accuracy(student.logits, target),
            **parts,
            **self.answers(student, teacher, target),
        }

    def ask_both(self, batch: Sequence[Any]) -> tuple[Outputs, Outputs]:
        """The teacher's outputs for a batch and the student's, at the same time if ``teacher_stream`` says so."""
        image = batch[0]
        if not (self.teacher_stream and image.is_cuda):
            return self.ask_teacher(batch), self.answer(image)
        with beside(image.device):
            teacher = self.ask_teacher(batch)
        student = self.answer(image)
        join(image.device)
        return teacher, student

    def ask_teacher(self, batch: Sequence[Any]) -> Outputs:
        """The teacher's outputs for a batch; in fit, from its cache where it has one for such a batch."""
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING  # what it was opened for
        if fitting and self.teacher_cache is not None and getattr(batch, "view", None) is not None:
            return self.teacher_cache.answer(cast("Batch", batch), self.teacher)
        return self.teacher(batch[0])  # type: ignore[no-any-return]

    def distillation_loss(self, student: Outputs, teacher: Outputs, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The distillation term, a scalar, and the scalars that are logged with it."""
        if self.bias is None:
            losses = [
                weight * losses_on_joined_batch(term, student, teacher, target)
                for term, weight in self.distiller.terms()
            ]
            wrong = ~partition(teacher.logits, target)
            return torch.stack(losses).sum(0).mean(), {"bias/wrong_rate": wrong.float().mean()}
        loss = self.bias(self.distiller, student, teacher, target)
        return loss.total, {
            "train/loss_right": loss.right,
            "train/loss_rectified": loss.rectified,
            "bias/wrong_rate": loss.wrong_rate,
            "bias/gamma": self.bias.gamma,
        }

    def sample(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The numbers (B,) of a batch's images in their data set, for methods with a memory.

        Raises:
            UserError: the batch has none, or numbers beyond those of the data set.
        """
        known = self._rehearsed["num_samples"] if self._rehearsed else None
        return check_samples(batch[2] if len(batch) > 2 else None, known, batch_idx)

    def answers(self, student: Outputs, teacher: Outputs, target: Tensor) -> dict[str, Tensor]:
        """What callbacks see of a step in its ``outputs``: (B, C) logits without gradient, and (B,) labels."""
        return {"student_logits": student.logits.detach(), "teacher_logits": teacher.logits, "target": target}

    def evaluate(self, stage: str, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor] | None:
        """See :class:`ClassificationModule`; the teacher is counted too."""
        teacher, student = self.ask_teacher(batch), self.answer(batch[0])
        self.check_batch(batch_idx, batch[1], student.logits)
        self.check_teacher(batch_idx, student, teacher)
        rows = self.own_rows(stage, batch, batch_idx)
        answers = {name: values[:rows] for name, values in self.answers(student, teacher, batch[1]).items()}
        if rows:
            student_logits, teacher_logits, target = answers.values()
            self.count_accuracy(f"{stage}/", student_logits, target)
            self.count_accuracy(f"{stage}/teacher_", teacher_logits, target)
            beyond = self.meter(f"{stage}/beyond", lambda: MetricCollection([BeyondTeacher()], prefix=f"{stage}/"))
            beyond.update(student_logits, teacher_logits, target)
        return answers

    def check_teacher(self, batch_idx: int, student: Outputs, teacher: Outputs) -> None:
        """Refuses a teacher that doesn't fit the student or is not finite.

        Raises:
            UserError: either.
        """
        check_teacher(teacher.logits, student.logits, batch_idx)

    def log_meters(self, stage: str) -> dict[str, Tensor]:
        """See :class:`ClassificationModule`; adds the gap between student and teacher."""
        values = super().log_meters(stage)
        if f"{stage}/teacher_acc1" in values:
            gap = values[f"{stage}/acc1"] - values[f"{stage}/teacher_acc1"]
            self.log(f"{stage}/gap", gap, prog_bar=True, sync_dist=True)
        return values

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self._teacher_as_built and self.teacher.convert is None and self.data_input is not None:
            warn_of_pretrained(self.teacher.model, self.data_input)

    def parts_to_compile(self) -> list[nn.Module]:
        """See :class:`ClassificationModule`; the loss is compiled too, and the teacher compiles itself."""
        if self.teacher.backend == "fast":
            self.teacher.backend = "compile"
        loss = [term for term, _ in self.distiller.terms()] if self.bias is None else [self.bias]
        return [*super().parts_to_compile(), *loss]

    def configure_model(self) -> None:
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        method = self.distiller
        if fitting and self._rehearsed is None and (method.builds or method.layers or method.embedding):
            self.rehearse(*some_images(self.trainer))
        if self.device_mesh is not None and not self._sharded:
            self._sharded = True
            self.shard(self.device_mesh["data_parallel"])

    def shard(self, mesh: DeviceMesh) -> None:
        """Spreads both networks over the processes, where the strategy is Lightning's ``ModelParallelStrategy``.

        The teacher is then run as it is, as weights that are spread can't be folded, and before the student. What the
        method learns beside the student, every process holds whole.
        """
        if self.teacher_cache is not None:
            raise UserError("networks that are spread over processes keep no cache of the teacher: leave it out")
        self.teacher.backend = "plain"
        self.teacher_stream = False
        broadcast_from_first(self.distiller, mesh)
        for network in (self.student, self.teacher.model):
            broadcast_from_first(network, mesh)
            shard(network, mesh)

    def on_after_backward(self) -> None:
        super().on_after_backward()
        if self.device_mesh is not None:
            average_gradients(self.distiller, self.device_mesh["data_parallel"])

    def rehearse(self, image: Tensor, num_samples: int | None = None) -> None:
        """Runs both networks once, so that features are found and adapters built before the optimizer is.

        A Trainer's fit does it by itself, for methods that read features or have a ``build`` of their own.

        Args:
            image: (B, …), a few images as a training step gets them.
            num_samples: how many images the data set numbers, for methods with a memory.
        """
        parameter = next(self.student.parameters())
        image = image.to(parameter.device, parameter.dtype)
        with torch.no_grad(), evaluating(self.student):
            self.distiller.build(super().answer(image), self.teacher(image), num_samples)
            self.deployed()  # what can't be deployed is refused now, not after training
        self._rehearsed = {"image_shape": list(image.shape[1:]), "num_samples": num_samples}
        if self.data_input is not None:
            self._rehearsed |= {"mean": list(self.data_input.mean), "std": list(self.data_input.std)}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._epoch = -1
        if self.teacher_cache is not None:
            datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
            self.teacher_cache.open(self.teacher, datamodule, self.num_classes)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._epoch == self.current_epoch:
            return
        # not on_train_epoch_start, which a run that goes on from a checkpoint may leave out
        self._epoch = self.current_epoch
        self.distiller.set_epoch(self.current_epoch)
        if self.teacher_cache is not None and self.device.type == "cuda":
            self.teacher_cache.keep_on(self.device, self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_callbacks(self) -> list[Callback]:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        scheduled = any(isinstance(callback, DynamicWeights) for callback in callbacks)
        return [] if self.bias is None or scheduled else [DynamicWeights()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["method"] = self._method()
        if self._rehearsed is not None:
            checkpoint["rehearsed"] = self._rehearsed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        rehearsed = checkpoint.get("rehearsed")
        if rehearsed is not None and self._rehearsed is None:
            if self.data_input is None and "mean" in rehearsed:
                self.connect_inputs(InputSpec(rehearsed["mean"], rehearsed["std"]))
            self.rehearse(torch.zeros(2, *rehearsed["image_shape"]), rehearsed["num_samples"])
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("method", self._method())
        if saved != self._method():
            rank_zero_warn(f"the checkpoint was trained with {saved}; this module distils with {self._method()}")

    def _method(self) -> str:
        return " ".join(f"{self.distiller!r} and {self.bias!r}".split())
