"""The arguments of a module that its checkpoint keeps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.parsing import collect_init_args

from lightning_biaskd.networks.inputs import InputSpec


def save_plain_arguments(module: LightningModule) -> None:
    """Saves the plain arguments of a module as its hyper-parameters; to be called in its ``__init__``.

    These are the numbers, words, lists of them and formats of images that the caller gave to the constructor of the
    module's own class, whichever base class calls this. Networks, methods and other objects have to be given again when
    the checkpoint is loaded. LightningCLI describes objects by ``class_path`` and ``init_args``; then these are saved
    too.
    """
    frame = inspect.currentframe()
    assert frame is not None  # CPython has it
    frame = frame.f_back
    levels = collect_init_args(frame, [], classes=(HyperparametersMixin,))  # type: ignore[arg-type]
    given = levels[-1]
    names = {name for level in levels for name in level}
    objects = [name for name in names if name not in given or not _plain(given[name])]
    module.save_hyperparameters(ignore=objects, frame=frame, logger=False)
    specs = {name: asdict(given[name]) for name in objects if isinstance(given.get(name), InputSpec)}
    if specs:
        module.save_hyperparameters({**module.hparams, **specs}, logger=False)
    if "_instantiator" in module.hparams:
        module.save_hyperparameters(frame=frame, logger=False)


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
