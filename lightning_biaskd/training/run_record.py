"""The settings of a run that a checkpoint notes, and what happens where a resumed run has other ones."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.training.schedules import CosineOverRun, StepsOverRun

_NEVER = {"seed_everything", "data", "data.seed", "data.val_split", "optimizer"}
"""Another seed or split would validate on images that were trained on; another optimizer can't read the state."""
_BETWEEN_EPOCHS = {"data.batch_size", "data.train_size", "processes", "accumulate_grad_batches", "limit_train_batches"}
"""What decides which batches an epoch has."""
_PLACES = {
    "bias",
    "distiller",
    "root",
    "num_workers",
    "download",
    "num_samples",
    "weights",
    "compile",
    "channels_last",
    "teacher_stream",
}
"""Settings that change nothing after the start; the method, which is told in full elsewhere."""
_UNKNOWN = object()


def record(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """The settings of a run, as plain values by name."""
    found: dict[str, Any] = {
        "seed_everything": os.environ.get("PL_GLOBAL_SEED"),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        **_plain_ones("", trainer, ("accumulate_grad_batches", "max_epochs", "max_steps", "limit_train_batches")),
        **_arguments("", module),
    }
    if (data := getattr(trainer, "datamodule", None)) is not None:
        public = [name for name in vars(data) if not name.startswith(("_", "prepare_", "allow_"))]
        found |= {"data": type(data).__name__, **_plain_ones("data.", data, public)}
    sharded = module.device_mesh is not None  # no process has a sharded teacher's weights to name them by
    if not sharded and (teacher := getattr(module, "teacher", None)) is not None and hasattr(teacher, "fingerprint"):
        if "_named" not in vars(module):  # once, as it reads all of the weights
            vars(module)["_named"] = teacher.fingerprint()
        found["teacher"] = vars(module)["_named"]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if getattr(callback, "steers_training", False):
            found |= _arguments(f"{type(callback).__name__}.", callback)
    for optimizer in trainer.optimizers:
        found["optimizer"] = type(optimizer).__name__
        found |= {f"optimizer.{name}": plain for name, plain in _plain(optimizer.defaults).items()}
    found["lr_scheduler"] = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
    for config in trainer.lr_scheduler_configs:
        lengths = ("T_max", "milestones") if isinstance(config.scheduler, CosineOverRun | StepsOverRun) else ()
        kept = _arguments("lr_scheduler.", config.scheduler)
        found |= {name: value for name, value in kept.items() if not name.endswith(lengths)}
        found["follows_the_run"] = bool(lengths)
    return found


def compare(before: Mapping[str, Any], now: Mapping[str, Any], within_epoch: bool) -> None:
    """Says in one line each what differs from the run that wrote the checkpoint, or refuses to go on.

    Args:
        before: the record in the checkpoint; an empty one says nothing.
        now: that of this run.
        within_epoch: whether the run goes on within an epoch.

    Raises:
        UserError: the seed, the split or the optimizer differs, or within an epoch what decides on its batches.
    """
    names = sorted(before.keys() | now.keys()) if before else []
    changed = [name for name in names if before.get(name) != now.get(name)]
    refused = [name for name in changed if name in _NEVER or (within_epoch and name in _BETWEEN_EPOCHS)]
    if refused:
        what = ", ".join(f"{name} {_shown(before.get(name))}, not {_shown(now.get(name))}" for name in refused)
        later = "" if _NEVER.intersection(refused) else ", go on from a checkpoint of the end of an epoch,"
        raise UserError(
            f"the checkpoint's run had {what}: go on with the same{later} or begin a new run with the checkpoint as "
            "the initial weights"
        )
    other_schedule = before.get("lr_scheduler") != now.get("lr_scheduler")
    for name in changed:
        if other_schedule and name.startswith(("lr_scheduler.", "follows_the_run")):
            continue
        was, is_now = _shown(before.get(name)), _shown(now.get(name))
        if name.startswith(("optimizer.", "lr_scheduler.")):
            rank_zero_warn(f"{name} stays {was}, as in the checkpoint, and does not become {is_now}")
        elif name in ("max_epochs", "max_steps") and now["lr_scheduler"] and not now["follows_the_run"]:
            rank_zero_warn(f"{name} was {was} and is {is_now}: {', '.join(now['lr_scheduler'])} keeps its old length")
        else:
            rank_zero_info(f"{name} was {was} when the checkpoint was written and is {is_now} from here on")


def _arguments(prefix: str, instance: object) -> dict[str, Any]:
    """The plain arguments of an object's constructors that it keeps under their names."""
    constructors = [vars(kind)["__init__"] for kind in type(instance).__mro__ if "__init__" in vars(kind)]
    names = {name for constructor in constructors for name in _parameters(constructor)}
    return _plain_ones(prefix, instance, names - {"last_epoch", "self"})


def _parameters(function: Any) -> Iterable[str]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()


def _plain_ones(prefix: str, instance: object, names: Iterable[str]) -> dict[str, Any]:
    values = {name: _plain(getattr(instance, name, _UNKNOWN)) for name in names if name not in _PLACES}
    return {f"{prefix}{name}": value for name, value in values.items() if value is not _UNKNOWN}


def _plain(value: Any) -> Any:
    """A value that a checkpoint can hold and that compares by what it says."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        items = {str(key): _plain(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not _UNKNOWN}
    if isinstance(value, list | tuple):
        items_of = [_plain(item) for item in value]
        return _UNKNOWN if _UNKNOWN in items_of else items_of
    if isinstance(value, nn.Module) and next(value.parameters(), None) is None:
        return " ".join(repr(value).split())
    return getattr(value, "__qualname__", _UNKNOWN)  # a function


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
