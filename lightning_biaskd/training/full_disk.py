"""Lets training go on where the disk is full."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

_SAVES = ("_save_none_monitor_checkpoint", "_update_best_and_save", "_save_last_checkpoint")
_LOGS = ("log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint")


def survive_full_disk(trainer: Trainer) -> None:
    """Makes loggers warn where they can't write, and checkpoint callbacks forget a checkpoint that wasn't written."""
    for logger in trainer.loggers:
        for name in _LOGS:
            _wrap(logger, name, _warning)
    for callback in trainer.checkpoint_callbacks:
        for name in _SAVES:
            if hasattr(callback, name):
                _wrap(callback, name, functools.partial(_forgetting, trainer, callback))


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    if name not in vars(owner):  # not twice
        setattr(owner, name, functools.partial(wrapper, getattr(owner, name)))


def _warning(write: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return write(*args, **kwargs)
    except OSError as error:
        rank_zero_warn(f"metrics could not be written ({error}): make room; training goes on")


def _forgetting(trainer: Trainer, callback: Any, save: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    before = {**vars(callback), "best_k_models": dict(callback.best_k_models)}
    save(*args, **kwargs)
    if trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failed", False)):
        vars(callback).update(before)
