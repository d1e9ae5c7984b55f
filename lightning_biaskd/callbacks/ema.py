"""An average of the trained network's weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError


class EMA(Callback):
    r"""Keeps an exponential moving average of the student's weights, and uses it for evaluation and checkpoints.

    .. math:: \bar w \leftarrow d_s \bar w + (1 - d_s)\, w, \qquad d_s = \min\Big(d, \frac{1 + s}{10 + s}\Big)

    after optimizer step :math:`s = 0, 1, \dots`; :math:`d_s = d` with ``warmup=False``. It averages the parameters and
    buffers of ``module.model``, which is the student of a DistillationModule or the network of a ClassificationModule,
    and of the layers that ``SimKD`` and ``NORM`` add to the student. It does not average the teacher or parameters of a
    method that are not deployed. Integer buffers are copied. The average does not change training.

    Validation uses the average, and so does the network after the fit. A checkpoint stores the average under
    ``"state_dict"``, which ``test``, ``load_weights`` and ``export`` read. It stores the trained weights under
    ``"current_model_state"``, as Lightning's ``WeightAveraging`` does. ``load_weights`` and ``export`` read these with
    ``ema=False``, and a resumed run continues from them exactly.

    On the command line: ``--trainer.callbacks+=EMA --trainer.callbacks.decay 0.999``.

    Args:
        decay: :math:`d`; the average covers about :math:`1 / (1 - d)` steps.
        warmup: average over fewer steps at the beginning of a run.

    Raises:
        UserError: a decay outside [0, 1), a module without ``model``, weights in half precision, or weights sharded by
            ``ModelParallelStrategy``.
    """

    steers_training = True
    averages_weights = True

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        self._others: list[Tensor] | None = None  # the average; the trained weights while the network has the average
        self._averaged = False
        self._steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(getattr(pl_module, "model", None), nn.Module):
            raise UserError(f"EMA averages the weights of module.model, and {type(pl_module).__name__} has none")
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [c for c in callbacks if isinstance(c, EMA | WeightAveraging | StochasticWeightAveraging)]
        if len(others) > 1:
            raise UserError(f"{' and '.join(type(c).__name__ for c in others)} would both exchange weights: keep one")
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise UserError("EMA doesn't average weights that are spread over processes: leave it out, or use DDP")
        if stage == TrainerFn.FITTING:
            self._others, self._averaged = None, False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING and "current_model_state" in checkpoint:
            self._others = [tensor.clone() for tensor in _tensors(pl_module)]
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.global_step
        current = _tensors(pl_module)
        if coarse := next((t.dtype for t in current if t.is_floating_point() and t.dtype.itemsize < 4), None):
            raise UserError(
                f"an average of weights in {str(coarse).removeprefix('torch.')} would hardly move, as its steps are "
                "rounded away: train with --trainer.precision bf16-mixed or 32-true, or leave EMA out"
            )
        others = self._others or current
        self._others = [other.to(own.device, copy=True) for other, own in zip(others, current, strict=True)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._steps or self._others is None:
            return
        self._steps = trainer.global_step
        decay = min(self.decay, self._steps / (9 + self._steps)) if self.warmup else self.decay
        pairs = list(zip(self._others, _tensors(pl_module), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        average, current = map(list, zip(*floating, strict=True))
        get_ema_multi_avg_fn(decay)(  # type: ignore[no-untyped-call]
            average, current, self._steps
        )
        for whole, own in pairs:
            if not whole.is_floating_point():
                whole.copy_(own)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not self._averaged:
            self._exchange(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._averaged:
            self._exchange(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._averaged:
            self._exchange(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_end(trainer, pl_module)  # Lightning skips on_train_end if a resumed run has nothing left to train

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._others is None:
            return
        averaged = self._averaged
        self._exchange(pl_module)
        other = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self._exchange(pl_module)
        states = (checkpoint["state_dict"], other)
        checkpoint["state_dict"], checkpoint["current_model_state"] = states if averaged else states[::-1]

    @torch.no_grad()
    def _exchange(self, pl_module: LightningModule) -> None:
        """Exchanges the network's weights with those kept here."""
        if self._others is None:
            return
        for own, other in zip(_tensors(pl_module), self._others, strict=True):
            before = own.clone()
            own.copy_(other)
            other.copy_(before)
        self._averaged = not self._averaged


def _tensors(pl_module: LightningModule) -> list[Tensor]:
    networks: list[nn.Module] = [pl_module.model]  # type: ignore[list-item]
    if isinstance(method := getattr(pl_module, "distiller", None), Distiller):
        networks += method.deployed_layers()
    return [tensor.detach() for network in networks for tensor in (*network.parameters(), *network.buffers())]
