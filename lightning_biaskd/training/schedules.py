"""Learning rates that follow the length of the run, and a warning for those that don't."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from lightning_biaskd.errors import UserError
from lightning_biaskd.training.checks import check_steady_steps

Scheduler = TypeVar("Scheduler")


class CosineOverRun(CosineAnnealingLR):
    r"""PyTorch's ``CosineAnnealingLR`` whose ``T_max`` is the length of the run, with a linear warm-up if asked.

    With W epochs (or steps) of warm-up, the rate in epoch t is

    .. math::
        \frac{t + 1}{W + 1}\,\eta \ \text{for}\ t \le W, \qquad \eta_{min} + \frac{\eta - \eta_{min}}{2}
        \Big(1 + \cos \pi \frac{t - W}{T_{max} - W}\Big)\ \text{after it.}

    Args:
        optimizer: whose rates are scheduled.
        T_max: epochs (or steps) to the lowest rate; ``None`` for the whole run.
        eta_min: the lowest rate.
        warmup: W, which large batches need.

    Raises:
        UserError: a negative warm-up; in a fit, one that is as long as the schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int | None = None,  # noqa: N803
        eta_min: float = 0.0,
        warmup: int = 0,
    ) -> None:
        self.follows = T_max is None
        self.warmup = _checked_warmup(warmup)
        super().__init__(optimizer, T_max or 1, eta_min)

    def get_lr(self) -> list[Any]:
        """The rates of the present epoch, or step."""
        if not self.warmup:
            return super().get_lr()
        if self.last_epoch <= self.warmup:
            return _warming(self)
        share = (self.last_epoch - self.warmup) / (self.T_max - self.warmup)
        height = (1 + math.cos(math.pi * share)) / 2
        return [self.eta_min + (base - self.eta_min) * height for base in self.base_lrs]

    def fit_to(self, length: int) -> None:
        """Sets the length of the run, in epochs or steps."""
        self.T_max = length

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "T_max"})


class StepsOverRun(MultiStepLR):
    """PyTorch's ``MultiStepLR`` with milestones as shares of the run.

    Args:
        optimizer: whose rates are scheduled.
        milestones: increasing shares of the run, in (0, 1); whole numbers are epochs (or steps).
        gamma: factor of the rate at each milestone.
        warmup: epochs (or steps) of linear warm-up, as of :class:`CosineOverRun`.

    Raises:
        UserError: a milestone that isn't positive, or a negative warm-up; in a fit, one that reaches a milestone.
    """

    def __init__(self, optimizer: Optimizer, milestones: Sequence[float], gamma: float = 0.1, warmup: int = 0) -> None:
        if any(milestone <= 0 for milestone in milestones):
            raise UserError(f"milestones {list(milestones)} must be positive: shares of the run, or epochs")
        self.shares = list(milestones)
        self.follows = any(milestone < 1 for milestone in milestones)
        self.warmup = _checked_warmup(warmup)
        super().__init__(optimizer, [1], gamma)
        self.fit_to(1)

    def get_lr(self) -> list[Any]:
        """The rates of the present epoch, or step."""
        return _warming(self) if self.last_epoch <= self.warmup and self.warmup else super().get_lr()

    def fit_to(self, length: int) -> None:
        """Sets the length of the run, in epochs or steps."""
        self.milestones = Counter(max(1, round(m * length) if m < 1 else int(m)) for m in self.shares)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        skipped = ("milestones", "shares")
        super().load_state_dict({name: value for name, value in state_dict.items() if name not in skipped})


def fitted(scheduler: Scheduler, trainer: Trainer, interval: str) -> Scheduler:
    """Fits a scheduler to the length of the run, or warns if its own length is another.

    Args:
        scheduler: one of this module is fitted in place; others are left as they are.
        trainer: of the run.
        interval: whether the scheduler steps every ``"epoch"`` or every ``"step"``.

    Raises:
        UserError: the run has no length that the schedule could follow.
    """
    if getattr(scheduler, "follows", False):
        if (length := _length(trainer, interval)) is None:
            raise UserError(
                "the learning rate follows the length of the run, which is unknown: set trainer.max_epochs or "
                "trainer.max_steps, or name another lr_scheduler"
            )
        scheduler.fit_to(length)  # type: ignore[attr-defined]
    elif (told := _own_length(scheduler)) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        name, own = told
        length = _length(trainer, interval)
        past_end = length is not None and name == "milestones" and own >= length
        if length is not None and (past_end or (name != "milestones" and own != length)):
            rank_zero_warn(
                f"{type(scheduler).__name__} has {name} {own} and the run has {length} {interval}s: set {name} to fit, "
                "or use CosineOverRun or StepsOverRun of lightning_biaskd.training.schedules, which follow the run"
            )
    if isinstance(scheduler, CosineOverRun | StepsOverRun) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        end = scheduler.T_max if isinstance(scheduler, CosineOverRun) else min(scheduler.milestones, default=math.inf)
        if scheduler.warmup >= end:
            raise UserError(
                f"warmup {scheduler.warmup} doesn't end before {interval} {end} of the schedule: shorten it"
            )
    return scheduler


def _checked_warmup(warmup: int) -> int:
    if warmup < 0:
        raise UserError(f"warmup must be 0 or a positive number of epochs or steps, got {warmup}")
    return warmup


def _warming(scheduler: CosineOverRun | StepsOverRun) -> list[Any]:
    return [base * (scheduler.last_epoch + 1) / (scheduler.warmup + 1) for base in scheduler.base_lrs]


def _own_length(scheduler: Any) -> tuple[str, int] | None:
    kind = type(scheduler).__name__
    if kind in ("MultiStepLR", "StepsOverRun"):
        return "milestones", max(scheduler.milestones, default=0)
    name = {
        "CosineAnnealingLR": "T_max",
        "CosineOverRun": "T_max",
        "OneCycleLR": "total_steps",
        "PolynomialLR": "total_iters",
    }.get(kind)
    return (name, getattr(scheduler, name)) if name else None


def _length(trainer: Trainer, interval: str) -> int | None:
    """Epochs or steps of the run, if they are known."""
    check_steady_steps(trainer, interval)
    if interval == "epoch" and trainer.max_epochs not in (None, -1) and trainer.max_steps == -1:
        return max(1, trainer.max_epochs or 0)
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        return None
    if interval == "step":
        return max(1, int(steps))
    trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches / trainer.accumulate_grad_batches
    return None if math.isinf(batches) else max(1, math.ceil(steps / max(1, math.ceil(batches))))
