"""The report as one HTML file, which needs no other file."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from lightning_biaskd.compare import intervals
from lightning_biaskd.compare.curves import draw, svg
from lightning_biaskd.compare.matrix import Matrix
from lightning_biaskd.compare.table import columns, legend, lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_biaskd.compare.scheduler import Outcome

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; padding: 0 1rem;
  max-width: 90rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th.name, td.name { text-align: left; }
thead th { border-bottom: 2px solid #555; vertical-align: bottom; }
thead button { all: unset; cursor: pointer; font-weight: 600; white-space: normal; max-width: 9rem; }
thead button:hover { text-decoration: underline; }
thead button:focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tr.reference td { background: #f2f2f2; }
.clear { font-weight: 600; }
svg { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .5rem; }
.failed { color: #a33c00; }
"""
_SCRIPT = """
for (const [place, button] of document.querySelectorAll("#rows thead button").entries()) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = document.querySelector("#rows tbody");
    const falling = head.getAttribute("aria-sort") === "descending" ||
      (!head.hasAttribute("aria-sort") && head.classList.contains("name"));
    const sign = falling ? 1 : -1;
    const key = row => {
      const cell = row.cells[place], value = cell.dataset.value;
      return value === undefined ? cell.textContent : value === "" ? null : Number(value);
    };
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "ascending" : "descending");
  });
}
"""


def fragment(matrix: Matrix, outcome: Outcome) -> str:
    """The table alone, as a notebook shows it."""
    failed = "".join(f"<li>{escape(run.label)}: {escape(line)}</li>" for run, line in outcome.failures.items())
    told = "".join(f"<li>{escape(line)}</li>" for line in legend(matrix))
    failures = f"<p>Failed:</p><ul>{failed}</ul>" if failed else ""
    return f"{_table(matrix, outcome)}{failures}<ul>{told}</ul>{_verdict(outcome)}"


def page(title: str, matrix: Matrix, outcome: Outcome, facts: list[str]) -> str:
    """The whole file.

    Args:
        title: of the report.
        matrix: what was run.
        outcome: what came of it.
        facts: lines about where and how.
    """
    picture = _labelled(draw(matrix, outcome.results), _CAPTION)
    drawn = intervals.draw(matrix, outcome.results)
    differences = (
        "" if drawn is None else f"<h2>Differences</h2>\n<figure>{_labelled(drawn, intervals.CAPTION)}</figure>"
    )
    failed = "".join(f"<li>{escape(run.label)}: {escape(line)}</li>" for run, line in outcome.failures.items())
    failures = (
        f'<div class="failed">Failed; the same command tries them again:<ul>{failed}</ul></div>' if failed else ""
    )
    commands = "\n".join(run.command for row in matrix.expanded() for run in row.runs())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{"<br>".join(escape(fact) for fact in facts)}</p>
{failures}
<div class="wide">
{_table(matrix, outcome)}
</div>
<p>A click on a column's head sorts by it. {"Grey is a reference row." if matrix.reference else ""}</p>
<ul>
{"".join(f"<li>{escape(line)}</li>" for line in legend(matrix))}
</ul>
{differences}
<h2>Curves</h2>
<figure>{picture}</figure>
<h2>Every run by hand</h2>
<details><summary>{len(commands.splitlines())} commands</summary><pre>{escape(commands)}</pre></details>
{f"<h2>Verdict</h2>{_verdict(outcome)}" if outcome.verdict else ""}
<script>{_SCRIPT}</script>
</body>
</html>
"""


_CAPTION = (
    "Top-1 accuracy (of maps mean IoU) on validation images over training: mean over the seeds, in a band of ± one "
    "standard deviation. "
    "The beginning may lie below what is shown."
)


def _labelled(figure: Figure, caption: str) -> str:
    """A picture with its caption."""
    picture = svg(figure).replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f"{picture}<figcaption>{escape(caption)}</figcaption>"


def _verdict(outcome: Outcome) -> str:
    return "".join(f"<p>{escape(paragraph)}</p>" for paragraph in outcome.verdict)


def _table(matrix: Matrix, outcome: Outcome) -> str:
    told = columns(matrix)
    heads = [
        *(f'<th class="name" scope="col"><button type="button">{escape(axis)}</button></th>' for axis in matrix.axes),
        *(f'<th scope="col"><button type="button">{escape(column.title)}</button></th>' for column in told),
    ]
    rows = []
    for line in lines(matrix, outcome.results):
        names = [f'<td class="name">{escape(name)}</td>' for name in line.row.names.values()]
        cells = []
        for column in told:
            value = column.value(line)
            clear = column.title.startswith("difference") and line.difference and _clear(*line.difference[2:])
            css, number = ' class="clear"' if clear else "", "" if math.isnan(value) else f"{value:.6g}"
            cells.append(f'<td{css} data-value="{number}">{escape(column.text(line))}</td>')
        reference = matrix.reference.items() and matrix.reference.items() <= line.row.names.items()
        opening = '<tr class="reference">' if reference else "<tr>"
        rows.append("".join([opening, *names, *cells, "</tr>"]))
    return (
        f'<table id="rows"><thead><tr>{"".join(heads)}</tr></thead>\n<tbody>\n' + "\n".join(rows) + "\n</tbody></table>"
    )


def _clear(low: float, high: float) -> bool:
    """Whether an interval leaves zero out."""
    return low > 0 or high < 0
