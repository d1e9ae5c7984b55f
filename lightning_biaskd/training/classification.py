"""Training a classifier: a teacher, or a student alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_biaskd.errors import check_share
from lightning_biaskd.networks.compiled import compile_in_place
from lightning_biaskd.networks.inputs import InputConversion, InputSpec, conversion
from lightning_biaskd.networks.named_inputs import Input
from lightning_biaskd.networks.outputs import Outputs, labels_on_grid, resized
from lightning_biaskd.networks.tap import FeatureTap
from lightning_biaskd.renamed import refuse_renamed_methods
from lightning_biaskd.training.batches import images_of, labelled
from lightning_biaskd.training.checks import check_labels, check_student_outputs
from lightning_biaskd.training.label_loss import accuracy, checked_rows, cross_entropy, mean_of_known, of_all_ranks
from lightning_biaskd.training.network import NetworkModule
from lightning_biaskd.training.step import Step


class ClassificationModule(NetworkModule):
    """Trains a classifier: a teacher, or a student alone as the baseline.

    Batches are ``(image, target, …)``; in training, labels mixed by MixUp or CutMix (B, C) are taken too. Made to be
    subclassed: :meth:`losses` is what a training step minimises and logs, :meth:`evaluate` is what an evaluation step
    counts.

    =================== =======================================================================
    key                 meaning
    =================== =======================================================================
    ``train/loss``      what is minimised, mean of the epoch
    ``train/loss_step`` the same in one step, every ``log_every_n_steps``
    ``train/loss_ce``   cross-entropy, mean of the epoch
    ``train/acc1``      top-1 accuracy on the training views, mean of the epoch, in [0, 1]
    ``val/acc1``        top-1 accuracy, in [0, 1]; also ``test/acc1``
    ``val/acc5``        top-5 accuracy, from five classes on; also ``test/acc5``
    =================== =======================================================================

    Args:
        model: any network that takes images and gives logits (B, C), or maps (B, C, H, W) for labels (B, H, W).
        weights: initial weights, see :func:`~lightning_biaskd.models.load_weights`. They are read once, when a Trainer
            first fits, validates, tests or predicts. They are not read if a state dict, such as a checkpoint's, was
            loaded before.
        label_smoothing: of the cross-entropy.
        optimizer: from parameters to optimizer.
        lr_scheduler: from optimizer to scheduler, ``None`` for a constant rate.
        lr_interval: whether the scheduler steps every ``"epoch"`` or every ``"step"``.
        lr_batch_size: the global batch size (per process, times processes, times accumulated batches) that the
            learning rate is meant for; for another it is scaled in proportion (Goyal et al., 2017, arXiv 1706.02677).
            ``None`` takes the rate as it is. Schedulers with rates of their own, such as OneCycleLR, keep these.
        model_input: the input format of a pretrained network, if it differs from the data's normalisation; batches are
            converted on the device. ``"pretrained"`` takes it from timm's ``pretrained_cfg``.
        data_input: how the batches are normalised, ``None`` for the ``mean`` and ``std`` of the data module.
        channels_last: lay out the weights of convolutions with the channels last, which is faster on most devices.
        compile: run the parts of a step through ``torch.compile``, each in one graph; a word is its mode, such as
            ``"reduce-overhead"``, which is CUDA graphs. Names in checkpoints stay as they are.
        metrics: further torchmetrics of validation and test, logged as ``val/NAME`` and ``test/NAME``; of a teacher as
            ``val/teacher_NAME`` and ``test/teacher_NAME``. See :class:`~lightning_biaskd.metrics.ChosenMetrics`.
        ignore_index: the label of pixels or images that count nowhere; ``None`` for that of the data module, if it has
            one.

    Raises:
        UserError: weights that don't fit; in training, labels out of range or other classes than the data's.

    Example:
        >>> from lightning_biaskd.models import resnet8
        >>> module = ClassificationModule(resnet8(num_classes=10))
        >>> module(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_renamed_methods(cls)

    def __init__(
        self,
        model: nn.Module,
        weights: str | None = None,
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_batch_size: int | None = None,
        model_input: InputSpec | Literal["pretrained"] | None = None,
        data_input: InputSpec | None = None,
        channels_last: bool = True,
        compile: bool | Literal["reduce-overhead", "max-autotune"] = False,
        metrics: Sequence[Metric] | Mapping[str, Metric] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        check_share(label_smoothing=label_smoothing)
        super().__init__(model, weights, optimizer, lr_scheduler, lr_interval, lr_batch_size)
        self.label_smoothing = label_smoothing
        self._tap = FeatureTap(model)
        self.data_input = self._data_input = InputSpec.of(data_input)
        self.convert = conversion(model, model_input, self.data_input)
        self.channels_last = channels_last
        self.compile_mode = compile
        self.metrics = metrics
        self.ignore_index = ignore_index
        self._data_ignore_index: int | None = None
        self._compiled = False

    def forward(self, image: Input) -> Tensor:
        """Logits (B, C, …) of images (B, …), or of named tensors."""
        return self.outputs_of(image).logits

    def outputs_of(self, image: Input) -> Outputs:
        """The network's outputs for images (B, …) that are normalised as the data are, or for named tensors."""
        return self._tap(image if self.convert is None else self.convert(image))

    def losses(self, batch: Sequence[Any], batch_idx: int) -> Step:
        """One training step: the loss to minimise, what to log, and the outputs that both come from.

        An override adds a term by ``step._replace(loss=step.loss + term)``.

        Args:
            batch: ``(image, target, …)``.
            batch_idx: index of the batch in the epoch.
        """
        image, target = batch[:2]
        outputs = self.outputs_of(image)
        self.check_batch(batch_idx, target, outputs.logits)
        target = labels_on_grid(target, outputs.logits)
        losses = checked_rows(self.cross_entropy(outputs.logits, target), outputs.logits)
        known = None if self.ignore_index is None else target != self.ignore_index
        loss = mean_of_known(losses, known)
        if known is not None:
            loss = of_all_ranks(loss, known)
        logged = {"train/loss": loss, "train/loss_ce": loss, "train/acc1": accuracy(outputs.logits, target, known)}
        return Step(loss, {name: value.detach() for name, value in logged.items()}, outputs)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy (B, …) of logits (B, C, …) with each label (B, …), or mixed one (B, C); 0 if it is ignored.

        An override may give the mean (a scalar) instead, unless a strategy with ``refund`` or ``discount`` weighs the
        samples.
        """
        return cross_entropy(logits, target, self.label_smoothing, self.ignore_index)

    def evaluate(self, stage: str, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor] | None:
        image, target = batch[:2]
        logits = resized(self(image), target.shape[1:])
        self.check_batch(batch_idx, target, logits)
        if rows := self.own_rows(stage, batch, batch_idx):
            self.count_accuracy(f"{stage}/", logits[:rows], target[:rows])
        return None

    def check_batch(self, batch_idx: int, target: Tensor, logits: Tensor) -> None:
        """Refuses a batch whose labels and logits can't belong together, see :mod:`lightning_biaskd.training.checks`.

        Raises:
            UserError: another number of classes than the data's, or labels out of range.
        """
        classes = self.num_classes or logits.shape[1]
        check_labels(target, logits, classes, batch_idx, type(self.model).__name__, self.ignore_index)
        check_student_outputs(logits, batch_idx, type(self.model).__name__)

    def checked_batch(self, batch: Any, batch_idx: int) -> Sequence[Any]:
        return labelled(batch, batch_idx, mixed=self.trainer.training)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits (B, C)."""
        logits: Tensor = self(images_of(batch, batch_idx))
        return logits

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.connect_data(getattr(self.trainer, "datamodule", None))
        spread = self.device_mesh is not None  # by FSDP, which takes contiguous weights alone
        if self.channels_last and not spread and any(parameter.ndim == 4 for parameter in self.model.parameters()):
            self.model.to(memory_format=torch.channels_last)

    def connect_data(self, datamodule: object) -> None:
        """Takes from the data module how images are normalised and which label counts nowhere, where nothing is set."""
        if self.ignore_index == self._data_ignore_index:  # not the user's own
            self.ignore_index = self._data_ignore_index = getattr(datamodule, "ignore_index", None)
        given = self._data_input or InputSpec.of_data(datamodule)
        if given is not None:
            self.connect_inputs(given)

    def connect_inputs(self, given: InputSpec) -> None:
        """Tells every conversion of images how the data are normalised."""
        self.data_input = given
        for module in self.modules():
            if isinstance(module, InputConversion):
                module.connect(given)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.compile_mode and not self._compiled:
            for part in self.parts_to_compile():
                compile_in_place(part, None if self.compile_mode is True else self.compile_mode)
            self._compiled = True

    def parts_to_compile(self) -> list[nn.Module]:
        """The modules that ``compile`` compiles in place, each as one graph."""
        return [self.model]


_default_optimizer = inspect.signature(ClassificationModule).parameters["optimizer"].default
_default_optimizer.__qualname__ = "_default_optimizer"  # so that it can be pickled for spawned processes
