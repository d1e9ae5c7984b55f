"""The parser of the command line: brief help, one-line errors, and nothing passed on that the user did not give."""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS
from collections.abc import Callable
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_biaskd.command_line.complaints import fail
from lightning_biaskd.command_line.suggestions import meant


class BriefParser(LightningArgumentParser):
    """Says what is wrong in one line, and doesn't list every ``nn.Module`` there is as a possible network."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        help_text: str = super().format_help(*args, **kwargs)
        return re.sub(r",\s+known\s+subclasses:\s+torch\.nn\.Module,[^)]*\)", ")", help_text)

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        if isinstance(args, list):  # jsonargparse hands a null on to the parser of a nested class as the text None
            args = [re.sub("^(--[^=]+)=None$", r"\1=null", word) if isinstance(word, str) else word for word in args]
        return super().parse_args(args, *others, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(f"{message}{meant(message)} (see --help)", status=2)

    def _add_signature_arguments(self, function_or_class: Any, *args: Any, **kwargs: Any) -> list[str]:
        self._builder = None if inspect.isclass(function_or_class) else function_or_class
        added: list[str] = super()._add_signature_arguments(function_or_class, *args, **kwargs)
        return added

    def _add_signature_parameter(
        self, container: Any, nested_key: str | None, param: Any, *args: Any, **kwargs: Any
    ) -> None:
        # A builder such as torchvision's resnext50_32x4d sets some of its **kwargs itself, and refuses the defaults
        # that a parser finds behind them.
        if _hidden(self._builder, param) and param.default is not inspect.Parameter.empty:
            kwargs["default"] = SUPPRESS
        super()._add_signature_parameter(container, nested_key, param, *args, **kwargs)

    _builder: Callable[..., Any] | None = None


def _hidden(builder: Callable[..., Any] | None, param: Any) -> bool:
    """Whether a function takes a parameter by its ``**kwargs`` alone."""
    return builder is not None and param.name not in inspect.signature(builder).parameters
