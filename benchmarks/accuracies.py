"""Tables and figures of accuracy, from the evidence's CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from lightning_biaskd.compare import table
from lightning_biaskd.compare.statistics import paired_difference, summary

RESULTS = Path(__file__).parent / "results"
MATRICES = ("photos", "methods", "methods_vit", "camvid", "bccd", "main", "when", "full", "digits")
Runs = list[dict[str, str]]


@cache
def _results(matrix: str) -> Runs:
    with (RESULTS / f"evidence_{matrix}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def runs(matrix: str, **names: str) -> Runs:
    """The runs of a matrix, or those with certain names on its axes."""
    return [run for run in _results(matrix) if all(run[axis] == name for axis, name in names.items())]


def by_seed(found: Runs, column: str) -> dict[int, float]:
    """Percent."""
    return {int(run["seed"]): 100 * float(run[column]) for run in found if run[column]}


def spread(values: Mapping[int, float]) -> str:
    """Mean ± standard deviation."""
    return table.spread(summary(list(values.values()))) if values else "–"


def mean(values: Mapping[int, float]) -> str:
    """Mean."""
    return f"{summary(list(values.values())).mean:.2f}" if values else "–"


def difference(row: Runs, reference: Runs, column: str = "acc1_last") -> str:
    """Paired, with its interval."""
    if row == reference:
        return "–"
    return table.interval(paired_difference(by_seed(row, column), by_seed(reference, column)))


def ahead(found: Runs) -> str:
    """In how many runs the student ends ahead of its teacher."""
    won = sum(float(run["acc1_last"]) > float(run["teacher_acc1"]) for run in found)
    return f"{won} of {len(found)}"


HEAD = (
    *(
        "seeds",
        "last epoch [%]",
        "best epoch [%]",
        "minus plain [points], 95 %",
        "minus student alone",
        "validation [%]",
    ),
    *("runs ahead of the teacher", "where the teacher is right / wrong [%]"),
)


def line(names: Iterable[str], found: Runs, plain: Runs, alone: Runs) -> list[str]:
    """One row of a table."""
    right, wrong = (mean(by_seed(found, f"on_teacher_{which}")) for which in ("right", "wrong"))
    return [
        *names,
        str(len(found)),
        spread(by_seed(found, "acc1_last")),
        spread(by_seed(found, "acc1_best")),
        difference(found, plain),
        difference(found, alone),
        mean(by_seed(found, "val_acc1_last")),
        ahead(found),
        f"{right} / {wrong}",
    ]


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    titles = list(head)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def about(found: Runs) -> str:
    """The teacher of a setting."""
    right, wrong = (mean(by_seed(found, column)) for column in ("teacher_acc1", "wrong_rate"))
    return f"Teacher: {right} % on the test set, wrong on {wrong} % of the training views."


def names(found: Runs, *axes: str) -> list[tuple[str, ...]]:
    """Which rows there are, in order."""
    return list(dict.fromkeys(tuple(run[axis] for axis in axes) for run in found))


def setting(name: str) -> str:
    """All forms around KD in one setting of the main matrix."""
    found = runs("main", setting=name)
    alone = runs("main", setting=name, method="alone")
    plain = runs("main", setting=name, method="kd", form="plain")
    rows = [line(["the student alone"], alone, [], [])]
    for _, form in names(runs("main", setting=name, method="kd"), "method", "form"):
        rows.append(line([f"KD, {form}"], runs("main", setting=name, method="kd", form=form), plain, alone))
    return f"{about(found)}\n\n{markdown(['', *HEAD], rows)}"


def parts() -> str:
    """The paper's three parts, one after the other."""
    found = runs("main", setting="larger", method="kd")
    alone = runs("main", setting="larger", method="alone")
    plain = [run for run in found if run["form"] == "plain"]
    forms = {
        "plain KD": "plain",
        "elimination": "ramp, drop",
        "elimination and rectification": "ramp, swap, constant",
        "elimination, rectification and dynamic weights": "ramp, swap",
    }
    rows = [line([title], [run for run in found if run["form"] == form], plain, alone) for title, form in forms.items()]
    return markdown(["", *HEAD], rows)


def methods(name: str) -> str:
    """Other methods in one setting of the main matrix."""
    alone = runs("main", setting=name, method="alone")
    rows = []
    for method, form in names(runs("main", setting=name), "method", "form"):
        if method not in ("alone", "kd"):
            found = runs("main", setting=name, method=method, form=form)
            rows.append(line([method, form], found, runs("main", setting=name, method=method, form="plain"), alone))
    return markdown(["method", "form", *HEAD], rows)


def when() -> str:
    """KD under other conditions."""
    rows = []
    for where, but, form in names(runs("when"), "setting", "but", "form"):
        found = runs("when", setting=where, but=but, form=form)
        plain = runs("when", setting=where, but=but, form="plain")
        cells = line([where, mean(by_seed(found, "teacher_acc1")), but, form], found, plain, [])
        rows.append([*cells[:8], *cells[9:]])
    return markdown(["teacher", "its top-1 [%]", "change", "form", *HEAD[:4], *HEAD[5:]], rows)


def whole(matrix: str) -> str:
    """A matrix with one setting."""
    alone, plain = runs(matrix, method="alone"), runs(matrix, method="kd", form="plain")
    rows = [line(["the student alone"], alone, [], [])]
    for method, form in names(runs(matrix), "method", "form"):
        if method == "kd":
            rows.append(line([f"KD, {form}"], runs(matrix, method="kd", form=form), plain, alone))
    return f"{about(runs(matrix))}\n\n{markdown(['', *HEAD], rows)}"


def headline() -> str:
    """The README's."""
    columns = {"all 55,000 images": ("full", {}), "10,000 images": ("main", {"setting": "larger"})}
    columns |= {"6,000": ("main", {"setting": "tenth"}), "10,000, a fifth mislabelled": ("main", {"setting": "noise"})}
    rows = []
    for title, where in (
        ("the student alone", {"method": "alone"}),
        ("plain KD", {"method": "kd", "form": "plain"}),
        ("`bias/recommended.yaml`", {"method": "kd", "form": "recommended"}),
        ("`bias/paper.yaml`: the paper's form", {"method": "kd", "form": "paper, blend"}),
        ("`bias/ramp.yaml`", {"method": "kd", "form": "ramp, swap"}),
    ):
        rows.append(
            [title, *(spread(by_seed(runs(matrix, **at, **where), "acc1_last")) for matrix, at in columns.values())]
        )
    teacher = [mean(by_seed(runs(matrix, **at), "teacher_acc1")) for matrix, at in columns.values()]
    return markdown(["top-1 on 10,000 test images [%]", *columns], [["the teacher", *teacher], *rows])


def machines() -> str:
    """What it ran on, and how long."""
    lines = []
    for matrix in MATRICES:
        found = runs(matrix)
        hours = sum(float(run["seconds"]) for run in found) / 3600
        versions = {f"torch {r['torch']}, lightning {r['lightning']}, Python {r['python']}" for r in found}
        devices = ", ".join(sorted({run["device"] for run in found}))
        lines.append(
            f"- `{matrix}`: {len(found)} runs, {hours:.1f} hours of training, {devices}, {'; '.join(versions)}"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "full": lambda: whole("full"),
    "digits": lambda: whole("digits"),
    "when": when,
    "machines": machines,
    **{name: lambda name=name: setting(name) for name in ("larger", "equal", "tenth", "noise")},  # type: ignore[misc]
    "parts": parts,
    "methods larger": lambda: methods("larger"),
}

GOOD = ("larger", "tenth", "noise", "equal")
"""Settings of the main matrix whose teacher is trained to its end."""
POOR = ("weak", "misled")
"""Settings of the matrix ``when`` with a poor teacher."""


def gains(form: str, over: dict[str, str] | None = None, settings: Iterable[str] = GOOD) -> list[float]:
    """Points of KD in one form ahead of plain KD, or of other runs, on all images and in the settings."""
    other = over or {"method": "kd", "form": "plain"}
    places = [("full", {}), *(("main", {"setting": name}) for name in settings)]
    return [_ahead(runs(matrix, **at, method="kd", form=form), runs(matrix, **at, **other)) for matrix, at in places]


def gains_when(form: str, **where: str) -> list[float]:
    """Points of KD in one form ahead of plain KD under other conditions, one for each teacher."""
    teachers = [name for (name,) in names(runs("when", **where), "setting")]
    return [
        _ahead(runs("when", setting=name, form=form, **where), runs("when", setting=name, form="plain", **where))
        for name in teachers
    ]


def gain_around(method: str, form: str = "paper, blend") -> float:
    """Points that a method in one form is ahead of its plain form."""
    found = {name: runs("main", setting="larger", method=method, form=name) for name in (form, "plain")}
    return _ahead(found[form], found["plain"])


def _ahead(row: Runs, reference: Runs) -> float:
    return paired_difference(by_seed(row, "acc1_last"), by_seed(reference, "acc1_last")).mean


def span(values: Iterable[float], digits: int = 1) -> str:
    """From the smallest to the largest."""
    found = list(values)
    low, high = f"{min(found):.{digits}f}", f"{max(found):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _larger_teacher() -> Runs:
    settings = [run for run in runs("main") + runs("when") if run["setting"] in ("larger", "tenth", "noise")]
    return settings + runs("full")


def _mean(column: str, matrix: str, **where: str) -> str:
    return f"{summary(list(by_seed(runs(matrix, **where), column).values())).mean:.1f}"


def _kd_of_three_seeds() -> str:
    found = by_seed(runs("main", setting="larger", method="kd", form="plain"), "acc1_last")
    return mean({seed: found[seed] for seed in (0, 1, 2)})


def _excluding_zero() -> str:
    """How many of the intervals of `ramp` minus plain KD, with swap and drop and the poor teachers, exclude zero."""
    found = []
    for name in POOR:
        plain = by_seed(runs("when", setting=name, but="nothing", form="plain"), "acc1_last")
        for form in ("ramp, swap", "ramp, drop"):
            row = by_seed(runs("when", setting=name, but="nothing", form=form), "acc1_last")
            found.append(paired_difference(row, plain))
    clear = sum(each.low > 0 or each.high < 0 for each in found)
    return f"{clear} of the {len(found)} intervals {'excludes' if clear == 1 else 'exclude'} zero"


def _wrong(*places: Runs) -> list[float]:
    """Percent of training views that the teacher of each place gets wrong."""
    return [summary(list(by_seed(found, "wrong_rate").values())).mean for found in places]


def _wrong_of_batch(*places: Runs) -> str:
    return span((128 * rate / 100 for rate in _wrong(*places)), 0)


def _poor() -> list[Runs]:
    return [runs("when", setting=name) for name in POOR]


def _own_start(column: str) -> float:
    where = {"setting": "larger", "but": "own start, Adam"}
    paper, plain = runs("when", form="paper, blend", **where), runs("when", form="plain", **where)
    return paired_difference(by_seed(paper, column), by_seed(plain, column)).mean


def _standard_error() -> str:
    share = summary(list(by_seed(runs("full", method="kd", form="plain"), "acc1_last").values())).mean / 100
    return f"{100 * math.sqrt(share * (1 - share) / _images(runs('full'))):.1f}"


def _images(found: Runs) -> int:
    """Size of the test set."""
    return sum(int(found[0][name]) for name in ("both", "student_only", "teacher_only", "neither"))


_METHODS = [name for (name,) in names(runs("main"), "method") if name not in ("alone", "kd")]
FIGURES: dict[str, Callable[[], str]] = {
    "KD over alone": lambda: span(gains("plain", {"method": "alone"}, GOOD[:3])),
    "paper below": lambda: span(-gain for gain in gains("paper, blend")),
    "paper below, methods": lambda: span(-gain_around(name) for name in _METHODS if name != "dist"),
    "paper below, dist": lambda: f"{-gain_around('dist'):.0f}",
    "paper below, 0.9": lambda: span((-gain for gain in gains_when("paper, blend", but="KD weighs 0.9")), 0),
    "paper below, long": lambda: span((-gain for gain in gains_when("paper, blend", but="45 epochs")), 0),
    "ramp below, long": lambda: span(-gain for gain in gains_when("ramp, swap", but="45 epochs")),
    "ramp below": lambda: f"{-min(gains('ramp, swap')):.1f}",
    "ramp below, 10,000": lambda: f"{-gains('ramp, swap')[1]:.1f}",
    "ramp below, all": lambda: f"{-gains('ramp, swap')[0]:.1f}",
    "ramp below, noise": lambda: f"{-gains('ramp, swap', settings=['noise'])[1]:.1f}",
    "paper below, own start": lambda: f"{-_own_start('acc1_last'):.1f}",
    "paper above, own start, best": lambda: f"{_own_start('acc1_best'):.1f}",
    "poor, clear": _excluding_zero,
    "wrong, good": lambda: span(_wrong(runs("full"), runs("main", setting="larger")), 0),
    "wrong, poor": lambda: span(_wrong(*_poor()), 0),
    "wrong of 128, poor": lambda: _wrong_of_batch(*_poor()),
    "wrong of 128, 10,000": lambda: _wrong_of_batch(runs("main", setting="larger")),
    "wrong of 128": lambda: _wrong_of_batch(runs("full"), runs("main", setting="larger")),
    "standard error": _standard_error,
    "digits images": lambda: str(_images(runs("digits"))),
    "digits image": lambda: f"{100 / _images(runs('digits')):.1f}",
    "poor": lambda: span(gains_when("ramp, swap", but="nothing") + gains_when("ramp, drop", but="nothing")),
    "runs, larger teacher": lambda: str(len(_larger_teacher())),
    "runs, larger teacher, ahead": lambda: ahead(_larger_teacher()).split()[0],
    "alone, 10,000": lambda: spread(by_seed(runs("main", setting="larger", method="alone"), "acc1_last")),
    "KD, three seeds": _kd_of_three_seeds,
    "paper at 0.9": lambda: _mean("acc1_last", "when", but="KD weighs 0.9", form="paper, blend"),
    "paper where wrong": lambda: _mean("on_teacher_wrong", "full", method="kd", form="paper, blend"),
    "plain where wrong": lambda: _mean("on_teacher_wrong", "full", method="kd", form="plain"),
    "paper where right": lambda: _mean("on_teacher_right", "full", method="kd", form="paper, blend"),
    "plain where right": lambda: _mean("on_teacher_right", "full", method="kd", form="plain"),
}
