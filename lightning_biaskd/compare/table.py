"""The numbers of a matrix: one line per run as CSV, one per row as a table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_biaskd.compare.folder import score
from lightning_biaskd.compare.matrix import Matrix, Row, Run
from lightning_biaskd.compare.statistics import Difference, Summary, paired_difference, summary
from lightning_biaskd.metrics import Contingency

Results = dict[Run, dict[str, Any]]
_COUNTS = Contingency._fields


@dataclass(frozen=True)
class Line:
    """One row's numbers over its seeds; scores are of test images, in percent.

    Attributes:
        row: the row.
        runs: those that are done.
        last: of the last epoch.
        best: of the epoch that is best on validation images.
        difference: of last epochs to the reference row, in points; ``None`` without one.
        teacher: the teacher's accuracy.
        right: the student's accuracy where the teacher is right, last epoch.
        wrong: the same where it is wrong.
        wrong_rate: share of training views that the teacher gets wrong.
        minutes: of training, per run.
    """

    row: Row
    runs: list[Run]
    last: Summary
    best: Summary
    difference: Difference | None
    teacher: Summary
    right: Summary
    wrong: Summary
    wrong_rate: Summary
    minutes: float


def lines(matrix: Matrix, results: Results) -> list[Line]:
    """The table, row by row."""
    return [_line(row, matrix.reference_of(row), results) for row in matrix.expanded()]


def _line(row: Row, reference: Row | None, results: Results) -> Line:
    runs = [run for run in row.runs() if run in results]
    found = [results[run] for run in runs]
    tables = [Contingency.of(result["last"]) for result in found if set(_COUNTS) <= set(result["last"])]

    return Line(
        row,
        runs,
        summary(list(accuracies(row, results).values())),
        _known([100 * result["best"][score(result)] for result in found if "best" in result]),
        None if reference is None else paired_difference(accuracies(row, results), accuracies(reference, results)),
        _known([100 * table.teacher_accuracy for table in tables]),
        _known([100 * table.on_teacher_right for table in tables]),
        _known([100 * table.on_teacher_wrong for table in tables]),
        _known([100 * result["wrong_rate"] for result in found if result["wrong_rate"] is not None]),
        summary([result["seconds"] / 60 for result in found]).mean,
    )


def accuracies(row: Row, results: Results) -> dict[int, float]:
    """By seed: the score on the test images after the last epoch, in percent."""
    found = {run.seed: results[run] for run in row.runs() if run in results}
    return {seed: 100 * result["last"][score(result)] for seed, result in found.items()}


def _known(values: list[float]) -> Summary:
    return summary([value for value in values if not math.isnan(value)])


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        title: with the unit.
        text: of a line.
        value: what the column is sorted by.
    """

    title: str
    text: Callable[[Line], str]
    value: Callable[[Line], float]


def spread(found: Summary) -> str:
    """Mean ± standard deviation."""
    if not found.n:
        return "–"
    return f"{found.mean:.2f} ± {found.std:.2f}" if found.n > 1 else f"{found.mean:.2f}"


def interval(found: Difference | None) -> str:
    """Mean difference and its interval."""
    if found is None or not found.n:
        return "–"
    ends = f" [{found.low:+.2f}, {found.high:+.2f}]" if found.n > 1 else ""
    return f"{found.mean:+.2f}{ends}".replace("-", "−")


def columns(matrix: Matrix) -> list[Column]:
    """Those of the table, after the axes'."""
    chosen = [
        Column("seeds", _seeds, lambda line: line.last.n),
        Column("last epoch [%]", lambda line: spread(line.last), lambda line: line.last.mean),
        Column("best epoch [%]", lambda line: spread(line.best), lambda line: line.best.mean),
    ]
    if matrix.reference:
        chosen.append(
            Column(
                "difference [points], 95 %",
                lambda line: interval(line.difference),
                lambda line: line.difference.mean if line.difference else math.nan,
            )
        )
    return [
        *chosen,
        Column("teacher [%]", lambda line: _mean(line.teacher), lambda line: line.teacher.mean),
        Column("on teacher-right [%]", lambda line: _mean(line.right), lambda line: line.right.mean),
        Column("on teacher-wrong [%]", lambda line: _mean(line.wrong), lambda line: line.wrong.mean),
        Column("wrong-rate [%]", lambda line: _mean(line.wrong_rate), lambda line: line.wrong_rate.mean),
        Column("minutes a run", lambda line: _number(line.minutes, ".1f"), lambda line: line.minutes),
    ]


def legend(matrix: Matrix) -> list[str]:
    """What the columns mean."""
    reference = ", ".join(f"{axis} = {name}" for axis, name in matrix.reference.items())
    difference = (
        f"difference: of the last epoch to the row with {reference} and the rest alike, mean over the seeds that both "
        "have, with Student's 95 % interval; not corrected for the number of rows."
    )
    return [
        "last epoch: top-1 accuracy (of maps mean IoU) on the test images, mean ± standard deviation over the seeds; "
        "the headline.",
        "best epoch: the same of the epoch that is best on validation images.",
        *([difference] if matrix.reference else []),
        "teacher: its own accuracy on the test images.",
        "on teacher-right, on teacher-wrong: the student's accuracy (last epoch) on the test images that the teacher "
        "gets right, and on those that it gets wrong.",
        "wrong-rate: share of training views that the teacher gets wrong, last epoch.",
    ]


def _seeds(line: Line) -> str:
    wanted = len(line.row.seeds)
    return str(wanted) if line.last.n == wanted else f"{line.last.n} of {wanted}"


def _mean(found: Summary) -> str:
    return _number(found.mean, ".2f")


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else f"{value:{form}}"


def markdown_table(matrix: Matrix, results: Results) -> str:
    """The table in Markdown."""
    told = columns(matrix)
    head = [*matrix.axes, *(column.title for column in told)]
    rows = [[*line.row.names.values(), *(column.text(line) for column in told)] for line in lines(matrix, results)]
    rule = ["---"] * len(matrix.axes) + ["---:"] * len(told)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [head, rule, *rows])


def csv_table(matrix: Matrix, results: Results) -> str:
    """One line per run; accuracies and rates in [0, 1]."""
    stream = io.StringIO()
    rows = [_run_record(run, results[run]) for row in matrix.expanded() for run in row.runs() if run in results]
    names = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(stream, list(names) or [*matrix.axes, "seed"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(cell) for name, cell in row.items()} for row in rows)
    return stream.getvalue()


def _no_formula(cell: Any) -> Any:
    """Marks text that a spreadsheet would run as a formula; numbers stay numbers."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def latex_table(matrix: Matrix, results: Results, title: str) -> str:
    """The table in LaTeX, for the package booktabs."""
    told = columns(matrix)
    head = [*matrix.axes, *(column.title for column in told)]
    rows = [[*line.row.names.values(), *(column.text(line) for column in told)] for line in lines(matrix, results)]
    written = [" & ".join(map(_latex, row)) + r" \\" for row in [head, *rows]]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(matrix.axes)}{'r' * len(told)}}}",
            *(r"\toprule", written[0], r"\midrule", *written[1:], r"\bottomrule"),
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"[": "{[}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"±": r"$\pm$", "−": "$-$", "–": "--"},
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _run_record(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    last, validation = result["last"], {int(epoch): value for epoch, value in result["validation"].items()}
    best_epoch = max(validation, key=lambda epoch: validation[epoch], default=None)
    name = score(result)
    counts: dict[str, Any] = {} if name == "acc1" else {f"teacher_{name}": last.get(f"teacher_{name}")}
    if set(_COUNTS) <= set(last):
        table = Contingency.of(last)
        counts |= {
            "teacher_acc1": table.teacher_accuracy,
            "on_teacher_right": table.on_teacher_right,
            "on_teacher_wrong": table.on_teacher_wrong,
            **table._asdict(),
            "mcnemar_p": table.p_value,
        }
    return {
        **run.row.names,
        "seed": run.seed,
        f"{name}_last": last[name],
        f"{name}_best": result.get("best", {}).get(name),
        f"val_{name}_last": validation[max(validation)] if validation else None,
        f"val_{name}_best": validation[best_epoch] if best_epoch is not None else None,
        "best_epoch": best_epoch,
        "epochs": result["epochs"],
        **counts,
        "wrong_rate": result["wrong_rate"],
        "seconds": round(result["seconds"], 1),
        "resumed": result["resumed"],
        "device": result["device"],
        **result["versions"],
        "fingerprint": result["fingerprint"],
        "command": result["command"],
    }
