"""Lightning's loop counters in a checkpoint, put right so that a run goes on exactly where it was."""

from __future__ import annotations

from typing import Any, Literal

Rest = Literal["nothing", "iteration", "epoch_end"]
"""What a run has left undone when it saved: nothing, the end of an iteration (validation, step counts), or the end of
an epoch (other checkpoints, a scheduler that follows a metric)."""

_BATCHES = "epoch_loop.batch_progress"
_VALIDATION = "epoch_loop.val_loop.batch_progress"
_PER_EPOCH = ("epoch_loop.scheduler_progress", "epoch_loop.manual_optimization.optim_step_progress")
_OPTIMIZER = "epoch_loop.automatic_optimization.optim_progress"


def pending_work(fit_loop: dict[str, Any], validating: bool) -> Rest:
    """What is left undone at this moment.

    Args:
        fit_loop: the state of Lightning's fit loop.
        validating: whether the fit is in a validation.
    """
    epoch, batch = fit_loop["epoch_progress"]["current"], fit_loop[_BATCHES]["current"]
    if is_between_epochs(fit_loop):
        return "epoch_end" if epoch["completed"] < epoch["processed"] else "nothing"
    ended = batch["ready"] == batch["processed"]
    return "iteration" if ended and (validating or batch["completed"] < batch["processed"]) else "nothing"


def is_between_epochs(fit_loop: dict[str, Any]) -> bool:
    """Whether the last epoch is over, or none of its batches has been trained on."""
    epoch, batch = fit_loop["epoch_progress"]["current"], fit_loop[_BATCHES]["current"]
    return bool(epoch["processed"] == epoch["started"] or batch["processed"] == 0)


def normalize_counters(fit_loop: dict[str, Any]) -> int:
    """Brings the counters into one of two states, in place: between two epochs, or after a whole batch of one.

    Lightning guesses from its counters what a run did when it saved. It takes an epoch whose validation is missing for
    a finished one, and counts an epoch twice under ``max_steps``. In these two states it has nothing to guess.

    Returns:
        How many batches of the epoch are done; 0 between two epochs.
    """
    epoch, batch = fit_loop["epoch_progress"], fit_loop[_BATCHES]
    between = is_between_epochs(fit_loop)
    for name in ("total", "current"):
        done = epoch[name]["processed"]
        epoch[name].update(ready=done, started=done, processed=done, completed=done)
        if not between:
            epoch[name].update(ready=done + 1, started=done + 1)
        trained = batch[name]["processed"]
        batch[name].update(ready=trained, started=trained, completed=trained)
        _clear(fit_loop[_VALIDATION][name])
    fit_loop[_VALIDATION]["is_last_batch"] = False
    if between:
        batch["is_last_batch"] = False
        optimizer = fit_loop[_OPTIMIZER]["optimizer"]
        for progress in (batch, *(fit_loop[name] for name in _PER_EPOCH if name in fit_loop), *optimizer.values()):
            _clear(progress["current"])
    return int(batch["current"]["processed"])


def _clear(tracker: dict[str, int]) -> None:
    tracker.update(dict.fromkeys(tracker, 0))
