"""One line on the screen that is kept up to date."""

from __future__ import annotations

import logging
import math
import sys
import time
from importlib import import_module
from typing import Any

from rich import get_console
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from lightning_biaskd.callbacks.history import in_notebook
from lightning_biaskd.plotting import GREEN, SKY

LEAST_BAR = 8
"""Columns of the bar below which metrics are left out instead."""


class ProgressLine:
    """What a run says of itself; this base class is for files and pipes, where nothing can be rewritten.

    Attributes:
        moves: whether it is on the screen between :meth:`show` and :meth:`close`.
    """

    moves = False

    def show(self, what: str, done: int, total: float, words: list[str]) -> None:
        """Changes the line.

        Args:
            what: is going on.
            done: batches.
            total: batches, or infinity.
            words: the most important first; those that don't fit are left out.
        """

    def close(self, says: str | None = None) -> None:
        """Ends the line; ``says`` stands in its place, and ``None`` leaves it as it is."""
        if says:
            print(says, flush=True)


class _TerminalLine(ProgressLine):
    moves = True

    def __init__(self, console: Console, refresh_rate: int) -> None:
        self._console = console
        self._said: tuple[str, int, float, list[str]] = ("", 0, 1, [])
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=refresh_rate)
        real = sys.stderr
        # drawn at once: what is printed before Rich's thread has drawn it first would not erase it
        self._live.start(refresh=True)  # sys.stderr is now written above the line
        self._handlers = [handler for handler in _handlers() if handler.stream is real]
        for handler in self._handlers:
            handler.setStream(sys.stderr)
        self._real = real

    def show(self, what: str, done: int, total: float, words: list[str]) -> None:
        self._said = (what, done, total, words)

    def close(self, says: str | None = None) -> None:
        for handler in self._handlers:
            handler.setStream(self._real)
        self._live.transient = says is not None
        self._live.stop()
        super().close(says)

    def _render(self) -> Table:
        return rendered(*self._said, self._console.width)


class _NotebookLine(ProgressLine):
    moves = True

    def __init__(self, refresh_rate: int) -> None:
        self._ipython: Any = import_module("IPython.display")
        self._handle: Any = self._ipython.display(self._pretty(""), display_id=True)
        self._every, self._shown = 1 / refresh_rate, -math.inf
        self._said = ""

    def show(self, what: str, done: int, total: float, words: list[str]) -> None:
        self._said = " ".join([what, counted(done, total), *words])
        if time.monotonic() - self._shown > self._every:
            self._shown = time.monotonic()
            self._handle.update(self._pretty(self._said))

    def close(self, says: str | None = None) -> None:
        self._handle.update(self._pretty(self._said if says is None else says))

    def _pretty(self, text: str) -> Any:
        return self._ipython.Pretty(text)


def opened(refresh_rate: int) -> ProgressLine:
    """The line for where this runs."""
    if in_notebook():
        return _NotebookLine(refresh_rate)
    console = get_console()  # the one that everything else prints to, so that it prints above the line
    if _in_terminal(console) and not console.is_dumb_terminal:
        return _TerminalLine(console, refresh_rate)
    return ProgressLine()


def rendered(what: str, done: int, total: float, words: list[str], width: int) -> Table:
    """One line of ``width`` columns, with a bar in what the words leave of it."""
    words = [counted(done, total), *words]
    while len(words) > 1 and width - len(" ".join([what, *words])) - 2 < LEAST_BAR:
        words.pop()
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    known = math.isfinite(total)
    bar = Bar(total or 1 if known else None, done, pulse=not known, complete_style=SKY, finished_style=GREEN)
    grid.add_row(Text(what, style="bold"), bar, Text(" ".join(words)))
    return grid


def _in_terminal(console: Console) -> bool:
    """Whether somebody looks; FORCE_COLOR makes a pipe look like a terminal to Rich."""
    return console.is_terminal and console.file.isatty()


def counted(done: int, total: float) -> str:
    """How many of how many."""
    return f"{done}/{total:.0f}" if math.isfinite(total) else f"{done}"


def fitting(start: str, words: list[str], end: list[str]) -> str:
    """A line that a terminal doesn't wrap: words are left out from the last on."""
    console, words = get_console(), list(words)
    while True:
        line = f"{start}: {', '.join([*words, *end])}"
        if not words or not _in_terminal(console) or len(line) < console.width:
            return line
        words.pop()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(3), duration(83.2), duration(7265)
        ('0:03', '1:24', '2:01:05')
    """
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _handlers() -> set[logging.StreamHandler[Any]]:
    """Those that print; each keeps the stream that it was built with, and would write across the line."""
    loggers = [logging.root, *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    found = {handler for logger in loggers for handler in logger.handlers}
    return {handler for handler in found if isinstance(handler, logging.StreamHandler)}
