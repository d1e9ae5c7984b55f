"""Differences to the reference rows, with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_biaskd.compare.matrix import Matrix
from lightning_biaskd.compare.table import Results, lines
from lightning_biaskd.plotting import BLUE, GREY, panels, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Difference of each row to its reference row: top-1 accuracy (of maps mean IoU) on the test images after the "
    "last epoch, mean over "
    "the seeds that both have, with Student's 95 % interval. An interval that crosses zero shows no difference."
)


def draw(matrix: Matrix, results: Results) -> Figure | None:
    """A point and an interval for each row that has a difference; ``None`` if no row has."""
    found = [(line.row.label, line.difference) for line in lines(matrix, results)]
    shown = [(label, difference) for label, difference in found if difference is not None and difference.n]
    if not shown:
        return None
    figure, (ax,) = panels(1, 1, width=7.0, height=1.2 + 0.32 * len(shown))
    for place, (label, (n, mean, low, high)) in enumerate(shown):
        clear = n > 1 and (low > 0 or high < 0)
        if n > 1:
            ax.plot([low, high], [place, place], color=BLUE, linewidth=1.6)
        ax.plot([mean], [place], "o", color=BLUE, markersize=6, markerfacecolor=BLUE if clear else "white", label=label)
    ax.axvline(0, color=GREY, linewidth=1.0, linestyle="--")
    ax.set_yticks(range(len(shown)), [shortened(label, 60) for label, _ in shown], fontsize=9)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlabel("difference to the reference row [points]\nfilled: the interval leaves zero out", fontsize=9)
    ax.grid(alpha=0.3, axis="x")
    return figure
