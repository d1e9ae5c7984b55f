"""How far a matrix is."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class MatrixProgress:
    """A bar over all runs with the time left, and a line for each that ends.

    Where there is no terminal, the lines alone, with the same numbers.

    Args:
        done: runs that were done before.
        missing: runs to do.
    """

    def __init__(self, done: int, missing: int) -> None:
        self.done = done
        self.missing = missing
        self.console = Console()
        self._since = time.monotonic()
        self._elsewhere = 0
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), console=self.console
        )
        self._task = self._bar.add_task(self._counted(missing), total=max(missing, 1), left="")

    def __enter__(self) -> MatrixProgress:
        if self.done:
            self.console.print(f"{self.done} of {self.done + self.missing} runs were done before")
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, shares: dict[str, float], waiting: int) -> None:
        """Moves the bar.

        Args:
            shares: of each run that goes on, how much of it is done.
            waiting: runs that haven't begun.
        """
        told = [f"{label} {share:.0%}" for label, share in shares.items()]
        going = "; ".join(told if len(told) < 4 else [*told[:3], f"{len(told) - 3} more"])
        self._bar.update(
            self._task,
            completed=self._completed(shares, waiting),
            description=f"{self._counted(waiting + len(shares))} ({going})" if going else self._counted(waiting),
            left=self.left(shares, waiting),
        )

    def wait(self, runs: int) -> None:
        """Says, whenever their number changes, that the runs that are left are others' work."""
        if runs != self._elsewhere:
            self._elsewhere = runs
            self.console.print(f"waiting for {runs} runs that other processes are at work on", highlight=False)

    def told(self, line: str, shares: dict[str, float], waiting: int) -> None:
        """Prints what became of a run."""
        words = [self._counted(waiting + len(shares)), self.left(shares, waiting)]
        text = f"[{', '.join(word for word in words if word)}] {line}"
        self.console.print(text, markup=False, highlight=False, soft_wrap=not self.console.is_terminal)

    def left(self, shares: dict[str, float], waiting: int) -> str:
        """The time that the rest will take, if it goes on as so far."""
        completed = self._completed(shares, waiting)
        if completed < 0.05 or completed >= self.missing:
            return ""
        seconds = (time.monotonic() - self._since) / completed * (self.missing - completed)
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"about {hours} h {minutes:02} min left" if hours else f"about {max(minutes, 1)} min left"

    def _completed(self, shares: dict[str, float], waiting: int) -> float:
        return self.missing - waiting - len(shares) + sum(shares.values())

    def _counted(self, open_runs: int) -> str:
        total = self.done + self.missing
        return f"{total - open_runs} of {total} runs"
