"""The names of a data module's classes."""

from __future__ import annotations

from typing import Any

from lightning_biaskd.errors import UserError


def class_names_of(datamodule: Any, num_classes: int | None = None) -> list[str] | None:
    """The names in a data module's attribute ``class_names``, whatever sequence it is; ``None`` if it has none.

    Args:
        datamodule: any, or ``None``.
        num_classes: C, how many names there must be; ``None`` if that is not known.

    Raises:
        UserError: there are fewer or more.
    """
    given = getattr(datamodule, "class_names", None)
    names = [] if given is None else [str(name) for name in given]
    if names and num_classes is not None and len(names) != num_classes:
        raise UserError(
            f"{type(datamodule).__name__} has {len(names)} class_names for {num_classes} classes: name each class "
            "once, in the order of the labels"
        )
    return names or None
