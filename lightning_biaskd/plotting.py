"""A common style for all pictures. matplotlib is imported to draw one, and its global state is not changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning_biaskd.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, GREY = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    "#595959",
)
"""Distinguishable by colour-blind readers (Okabe and Ito, 2008), without their yellow, which is faint on white."""
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, "#000000")


def require_matplotlib() -> None:
    """Checks that matplotlib is installed, before any work is done.

    Raises:
        UserError: it isn't installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError('pictures need matplotlib, which is not installed: pip install "lightning-biaskd[plot]"')


def panels(rows: int, columns: int, width: float = 4.8, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns axes, each of the given size in inches; the axes row by row."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), dpi=110, layout="constrained")
    axes = [figure.add_subplot(rows, columns, number) for number in range(1, rows * columns + 1)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_axisbelow(True)
    return figure, axes


def lines(ax: Axes, title: str, ylabel: str, curves: dict[str, tuple[Sequence[float], Sequence[float], Any]]) -> None:
    """Curves over epochs.

    Args:
        ax: where.
        title: of the panel.
        ylabel: with the unit.
        curves: by label: epochs, values, and a dict of matplotlib's line properties. One without values is left out.
    """
    from matplotlib.ticker import MaxNLocator

    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn = [(label, curve) for label, curve in curves.items() if len(curve[0])]
    for label, (epochs, values, style) in drawn:
        ax.plot(epochs, values, label=label, **{"linewidth": 1.6, "marker": "o", "markersize": 2.5, **style})
    if drawn:
        ax.legend(fontsize=8, ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    else:
        _nothing(ax)


def bars(ax: Axes, title: str, xlabel: str, values: dict[str, float], colour: str = BLUE, form: str = ".1f") -> None:
    """Horizontal bars, the first on top, each with its number behind it.

    Args:
        ax: where.
        title: of the panel.
        xlabel: with the unit.
        values: by label; one that is NaN is left out.
        colour: of the bars.
        form: of the numbers.
    """
    values = {label: value for label, value in values.items() if not math.isnan(value)}
    ax.set_title(title, fontsize=10, loc="left")
    if not values:
        _nothing(ax)
        return
    ax.set_xlabel(xlabel)
    ax.grid(alpha=0.3, axis="x")
    places = range(len(values))
    drawn = ax.barh(places, list(values.values()), color=colour, height=0.7)
    ax.bar_label(drawn, [f" {value:{form}}" for value in values.values()], fontsize=8)
    ax.set_yticks(places, [shortened(label) for label in values], fontsize=8)
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.set_xlim(0, 1.15 * max(*values.values(), 1e-9))


def shortened(label: str, length: int = 40) -> str:
    """A label that doesn't push the axes aside."""
    return label if len(label) <= length else f"{label[: length - 1]}…"


def _nothing(ax: Axes) -> None:
    ax.text(0.5, 0.5, "nothing to show", ha="center", va="center", color=GREY, transform=ax.transAxes)
    ax.set_xticks([])
    ax.set_yticks([])
