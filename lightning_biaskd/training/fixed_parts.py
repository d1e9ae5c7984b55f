"""Modules whose parts stay those that they were built with."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from lightning_biaskd.errors import UserError


class FixedParts(nn.Module):
    """Refuses to exchange a part of a built module, as taps and methods would go on with the old one.

    Attributes:
        fixed_parts: names of the parts.

    Raises:
        UserError: one of them is set again.
    """

    fixed_parts: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.fixed_parts and getattr(self, name, value) is not value:
            raise UserError(
                f"{name} of a {type(self).__name__} can't be exchanged, as the old one would still be used: build "
                f"another {type(self).__name__}, or change layers inside the network"
            )
        super().__setattr__(name, value)
