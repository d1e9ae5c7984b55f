"""The picture of an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_biaskd.plotting import BLUE, GREEN, ORANGE, bars, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_biaskd.audit.report import AuditReport

SHOWN = 20


def draw(report: AuditReport) -> Figure:
    """Wrong-rate per class, commonest mistakes, confidence, and what each correction would do."""
    figure, (classes, mistakes, confidence, corrections) = panels(2, 2, width=6.0, height=3.8)
    figure.suptitle(f"Teacher: wrong on {report.wrong:,} of {report.views:,} training views ({report.wrong_rate:.1%})")
    worst = sorted((c for c in report.classes if c.views), key=lambda c: -c.wrong_rate)[:SHOWN]
    title = "Wrong-rate per class" if len(report.classes) <= SHOWN else f"The {SHOWN} classes most often wrong"
    bars(classes, title, "wrong, of the class's views [%]", {c.name: 100 * c.wrong_rate for c in worst})
    pairs = {f"{m.label} → {m.answer}": 100 * m.views / report.wrong for m in report.mistakes[:12]}
    bars(mistakes, "Commonest mistakes: label → answer", "of all mistakes [%]", pairs, ORANGE)
    bins = len(report.histogram_right)
    edges = [100 * i / bins for i in range(bins + 1)]
    for name, counts, colour, style in (
        ("right", report.histogram_right, BLUE, "-"),
        ("wrong", report.histogram_wrong, ORANGE, "--"),
    ):
        if sum(counts):
            shares = [100 * count / sum(counts) for count in counts]
            label = f"{name}: {sum(counts):,} views"
            confidence.stairs(shares, edges, label=label, color=colour, linestyle=style, linewidth=1.8)
    confidence.set_title("How sure the teacher is", fontsize=10, loc="left")
    confidence.set_xlabel("probability of its answer, τ = 1 [%]")
    confidence.set_ylabel("of these views [%]")
    confidence.legend(fontsize=8, loc="upper left", frameon=False)
    confidence.grid(alpha=0.3)
    bars(
        corrections,
        "What each correction would do",
        "probability that it moves, of all [%]",
        {
            f"{c.mode}, τ = {c.temperature:g}\nlabel not on top: {c.not_on_top:.1%}": 100 * c.moved
            for c in report.corrections
            if report.wrong
        },
        GREEN,
        form=".2f",
    )
    return figure
