"""Callbacks of which a run can have one only."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn


def without_duplicates(callbacks: Iterable[Callback]) -> list[Callback]:
    """Of several callbacks with one state in a checkpoint, keeps the last, and says so.

    Callbacks of this package are told apart by their class, others by their state key: for ``ModelCheckpoint`` that is
    what it monitors and how often it saves.
    """
    kept: dict[str, Callback] = {}
    for callback in callbacks:
        kind = type(callback)
        ours = kind.__module__.startswith("lightning_biaskd.")
        key = kind.__qualname__ if ours else callback.state_key
        if not ours and not _has_state(callback):
            key = str(id(callback))
        if kept.pop(key, None) is not None:
            rank_zero_warn(f"{kind.__name__} is given twice ({key}): the later one is used")
        kept[key] = callback
    return list(kept.values())


def _has_state(callback: Callback) -> bool:
    kind = type(callback)
    return any(getattr(kind, name) is not getattr(Callback, name) for name in ("state_dict", "on_save_checkpoint"))
