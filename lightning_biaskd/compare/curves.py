"""Accuracy over training, as in the paper's figure 4."""

from __future__ import annotations

import io
import re
import statistics
from typing import TYPE_CHECKING

from lightning_biaskd.compare.matrix import Matrix, Row
from lightning_biaskd.compare.table import Results
from lightning_biaskd.plotting import COLOURS, GREY, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")


def draw(matrix: Matrix, results: Results) -> Figure:
    """A line for each row: the mean over the seeds, in a band of ± one deviation; rows share panels by ``lines``."""
    by_panel: dict[str, dict[str, Row]] = {}
    for row in matrix.expanded():
        if any(run in results for run in row.runs()):
            panel = ", ".join(f"{axis}: {name}" for axis, name in row.names.items() if axis != matrix.lines)
            by_panel.setdefault(panel, {})[row.names[str(matrix.lines)]] = row
    labels = list(dict.fromkeys(label for inside in by_panel.values() for label in inside))
    looks = {label: (COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % 4]) for i, label in enumerate(labels)}
    across = min(3, max(len(by_panel), 1))
    figure, axes = panels(-(-max(len(by_panel), 1) // across), across)
    for ax in axes[len(by_panel) :]:
        ax.set_visible(False)
    for ax, (panel, inside) in zip(axes, by_panel.items(), strict=False):
        ax.set_title(panel, fontsize=10, loc="left")
        shown = [_band(ax, label, _curves(row, results), *looks[label]) for label, row in inside.items()]
        _teacher(ax, list(inside.values()), results)
        _settle(ax, shown)
    handles = {str(line.get_label()): line for ax in axes for line in ax.get_lines()}
    known = [label for label in [*labels, "teacher"] if label in handles]
    if known:
        chosen = [handles[label] for label in known]
        figure.legend(chosen, known, loc="outside lower center", ncols=min(len(known), 5), fontsize=9, frameon=False)
    return figure


def svg(figure: Figure) -> str:
    """A figure as an ``<svg>`` element, to stand in a page; the same figure gives the same text."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lightning_biaskd"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def _curves(row: Row, results: Results) -> list[dict[int, float]]:
    """Of each seed: validation accuracy in percent by epoch."""
    found = [results[run]["validation"] for run in row.runs() if run in results]
    return [{int(epoch): 100 * value for epoch, value in curve.items()} for curve in found]


def _band(ax: Axes, label: str, curves: list[dict[int, float]], colour: str, style: str) -> list[float]:
    """Draws one row; returns its means."""
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [[curve[epoch] for curve in curves] for epoch in epochs]
    means = [statistics.fmean(seeds) for seeds in values]
    marker = "o" if len(epochs) < 6 else ""
    ax.plot(epochs, means, color=colour, linestyle=style, linewidth=1.8, marker=marker, markersize=3, label=label)
    if len(curves) > 1:
        off = [statistics.stdev(seeds) for seeds in values]
        low, high = ([mean + sign * s for mean, s in zip(means, off, strict=True)] for sign in (-1, 1))
        ax.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
    return means


def _teacher(ax: Axes, rows: list[Row], results: Results) -> None:
    """Its validation accuracy, where all rows of a panel have the same teacher."""
    found = {results[run]["teacher_validation"] for row in rows for run in row.runs() if run in results}
    if len(found) == 1 and None not in found:
        ax.axhline(100 * found.pop(), color=GREY, linestyle=(0, (4, 3)), linewidth=1.2, label="teacher")


def _settle(ax: Axes, shown: list[list[float]]) -> None:
    """Labels, and a range in which the end can be told apart: the first quarter of a long training may lie below."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("epoch")
    ax.set_ylabel("score on validation images [%]")
    ax.grid(alpha=0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    late = [value for means in shown for value in means[len(means) // 4 if len(means) >= 8 else 0 :]]
    if late:
        top = ax.get_ylim()[1]
        ax.set_ylim(max(ax.get_ylim()[0], min(late) - 0.1 * (top - min(late)) - 0.5), top)
