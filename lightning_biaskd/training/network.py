"""Training one network, whatever it is trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.metrics import Means
from lightning_biaskd.metrics.class_names import class_names_of
from lightning_biaskd.metrics.meters import Meters
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.networks.weights import load_weights, mismatch
from lightning_biaskd.training.checks import check_accumulation, check_student
from lightning_biaskd.training.evaluation import EvaluatedModule
from lightning_biaskd.training.fixed_parts import FixedParts
from lightning_biaskd.training.hyperparameters import save_plain_arguments
from lightning_biaskd.training.optimization import OptimizedModule
from lightning_biaskd.training.step import Step


class NetworkModule(FixedParts, EvaluatedModule, OptimizedModule):
    """Base of the modules that train a network: its initial weights, what a step logs, and its checkpoints.

    A subclass implements :meth:`losses` and :meth:`evaluate`.

    Args:
        model: the network.
        weights: initial weights, see :func:`~lightning_biaskd.models.load_weights`. They are read once, when a Trainer
            first fits, validates, tests or predicts. They are not read if a state dict, such as a checkpoint's, was
            loaded before.
        optimizer: from parameters to optimizer.
        lr_scheduler: from optimizer to scheduler, ``None`` for a constant rate.
        lr_interval: whether the scheduler steps every ``"epoch"`` or every ``"step"``.
        lr_batch_size: the global batch size that the learning rate is meant for.

    Attributes:
        num_classes: C, the number of classes of the data; ``None`` if it is not known.
    """

    fixed_parts: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(
        self,
        model: nn.Module,
        weights: str | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_interval: Literal["epoch", "step"],
        lr_batch_size: int | None,
    ) -> None:
        super().__init__()
        save_plain_arguments(self)
        self.model = model
        self.weights = weights
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.lr_batch_size = lr_batch_size
        self.num_classes: int | None = None
        self.meters = Meters()
        self._loaded = False

    def losses(self, batch: Sequence[Any], batch_idx: int) -> Step:
        """One training step: the loss to minimise, what to log, and the outputs that both come from.

        An override adds a term by ``step._replace(loss=step.loss + term)``.

        Args:
            batch: ``(image, target, …)``.
            batch_idx: index of the batch in the epoch.
        """
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and for callbacks what :meth:`callback_outputs` gives them."""
        batch = self.checked_batch(batch, batch_idx)
        step = self.losses(batch, batch_idx)
        if not isinstance(step, Step):
            raise UserError(
                f"{type(self).__name__}.losses returned a {type(step).__name__}: return a Step, for example "
                "step._replace(loss=step.loss + term) of the step that super().losses(…) gives"
            )
        logged = {**step.logged, "train/loss": step.loss.detach()}
        self.meters.update("train/", lambda: Means(list(logged)), list(logged.values()), len(batch[1]))
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0 in a barebones Trainer
        if every and (self.global_step + 1) % every == 0:
            self.log("train/loss_step", logged["train/loss"], prog_bar=True, batch_size=len(batch[1]))
        trust = {} if step.trust is None else {"trust": step.trust}
        target = batch[1] if step.target is None else step.target
        return {"loss": step.loss, **trust, **self.callback_outputs(step.student, step.teacher, target)}

    def callback_outputs(self, student: Outputs, teacher: Outputs | None, target: Any) -> dict[str, Tensor]:
        """What callbacks find in the ``outputs`` of a batch in addition to the loss; nothing here."""
        return {}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_student(self.model, stage, str(self.trainer.precision))
        self.num_classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._loaded = True  # a checkpoint's, or what processes that were spawned have trained
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _load_initial(self) -> None:
        if self.weights is not None and not self._loaded:
            load_weights(self.model, self.weights)
        self._loaded = True

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._load_initial()

    def on_test_start(self) -> None:
        super().on_test_start()
        self._load_initial()

    def on_predict_start(self) -> None:
        self._load_initial()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        check_accumulation(self.trainer)
        self._load_initial()
        if not self.model.training:
            rank_zero_warn(
                f"{type(self.model).__name__} came in eval mode, as loaded networks do; it is put in train mode"
            )
            self.model.train()
        if not self.training:  # eval() of the module reached the method and the strategy, too
            self.train()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the card of an export tells: the metrics of the moment and the names of the classes."""
        super().on_save_checkpoint(checkpoint)
        metrics = self.trainer.callback_metrics
        checkpoint["metrics"] = {name: float(value) for name, value in metrics.items()}
        checkpoint["class_names"] = class_names_of(getattr(self.trainer, "datamodule", None))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        problem = mismatch(self, checkpoint["state_dict"], self.strict_loading)
        if problem:
            raise UserError(f"the checkpoint does not fit {type(self.model).__name__}: {problem}")
        self._loaded = True
