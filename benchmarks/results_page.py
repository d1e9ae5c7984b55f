"""Fills the tables of README.md and docs/results.md with what the evidence's CSV files say.

    python benchmarks/results_page.py                            # from benchmarks/results/evidence_*.csv
    python benchmarks/results_page.py --from runs/evidence       # takes new CSV files and curves over first

A table stands between ``<!-- results:NAME:begin -->`` and ``<!-- results:NAME:end -->``; the rest is written by hand.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lightning_biaskd.compare.statistics import paired_difference, summary

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
MATRICES = ("main", "when", "full", "digits")
Runs = list[dict[str, str]]


def runs(matrix: str, **names: str) -> Runs:
    """The runs of a matrix, or those with certain names on its axes."""
    with (RESULTS / f"evidence_{matrix}.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [run for run in found if all(run[axis] == name for axis, name in names.items())]


def by_seed(found: Runs, column: str) -> dict[int, float]:
    """Percent."""
    return {int(run["seed"]): 100 * float(run[column]) for run in found if run[column]}


def spread(values: Mapping[int, float]) -> str:
    """Mean ± standard deviation."""
    found = summary(list(values.values()))
    return f"{found.mean:.2f} ± {found.std:.2f}" if found.n > 1 else f"{found.mean:.2f}"


def mean(values: Mapping[int, float]) -> str:
    """Mean."""
    return f"{summary(list(values.values())).mean:.2f}" if values else "–"


def difference(row: Runs, reference: Runs, column: str = "acc1_last") -> str:
    """Paired, with its interval."""
    found = paired_difference(by_seed(row, column), by_seed(reference, column))
    if not found.n or not reference or row == reference:
        return "–"
    interval = f" [{found.low:+.2f}, {found.high:+.2f}]" if found.n > 1 else ""
    return f"{found.mean:+.2f}{interval}".replace("-", "−")


def ahead(found: Runs) -> str:
    """In how many runs the student ends ahead of its teacher."""
    won = sum(float(run["acc1_last"]) > float(run["teacher_acc1"]) for run in found)
    return f"{won} of {len(found)}"


HEAD = (
    *("seeds", "last epoch [%]", "best epoch [%]", "to plain [points], 95 %", "to the student alone", "validation [%]"),
    *("ahead of the teacher", "where the teacher is right / wrong [%]"),
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
    rate = mean(by_seed([run for run in found if run["wrong_rate"]], "wrong_rate"))
    return (
        f"Teacher: {mean(by_seed(found, 'teacher_acc1'))} % on the test set, wrong on {rate} % of the training views."
    )


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
    return markdown(["teacher", "its top-1 [%]", "but", "form", *HEAD[:4], *HEAD[5:]], rows)


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
        ("`bias/paper.yaml`: the paper's form, the default", {"method": "kd", "form": "paper, blend"}),
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


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "full": lambda: whole("full"),
    "digits": lambda: whole("digits"),
    "when": when,
    "machines": machines,
    **{name: lambda name=name: setting(name) for name in ("larger", "equal", "tenth", "noise")},  # type: ignore[misc]
    "parts": parts,
    "methods larger": lambda: methods("larger"),
}


def filled(text: str) -> str:
    """A page with its tables as the CSV files have them."""
    return re.sub(
        r"(<!-- results:(.*?):begin -->\n).*?(\n?<!-- results:\2:end -->)",
        lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3].lstrip()}",
        text,
        flags=re.DOTALL,
    )


def run() -> None:
    """Takes over what is new, and fills the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path)
    args = parser.parse_args()
    if args.source:
        for matrix in MATRICES:
            shutil.copy(args.source / matrix / "results.csv", RESULTS / f"evidence_{matrix}.csv")
            for picture in (args.source / matrix).glob("curves.svg"):
                (ROOT / "docs/img").mkdir(exist_ok=True)
                shutil.copy(picture, ROOT / "docs/img" / f"evidence_{matrix}.svg")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    run()
