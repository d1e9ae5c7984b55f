"""Tables of the evidence around methods other than KD, and of outputs other than one class for an image."""

from __future__ import annotations

from collections.abc import Callable

from accuracies import about, by_seed, difference, markdown, mean, names, runs, spread

from lightning_biaskd.compare.statistics import paired_difference
from lightning_biaskd.compare.table import interval


def methods(matrix: str) -> str:
    """Each method, plain and with the recommended form."""
    kd = by_seed(runs(matrix, method="kd", form="plain"), "acc1_last")
    rows = []
    for (method,) in names(runs(matrix), "method"):
        plain, ours = (runs(matrix, method=method, form=form) for form in ("plain", "recommended"))
        over_kd = interval(paired_difference(by_seed(plain, "acc1_last"), kd)) if method != "kd" else "–"
        scores = [spread(by_seed(found, "acc1_last")) for found in (plain, ours)]
        rows.append([f"`{method}`", str(len(plain)), *scores, difference(ours, plain), over_kd])
    head = ["method", "seeds", "plain [%]", "recommended [%]", "recommended − plain [points], 95 %", "plain − plain KD"]
    return f"{about(runs(matrix))}\n\n{markdown(head, rows)}"


def scored(matrix: str, score: str, title: str) -> str:
    """Every row of a matrix whose score isn't top-1 accuracy."""
    axes = [axis for axis in ("method", "form") if axis in runs(matrix)[0]]
    column = f"{score}_last"
    rows = []
    for values in names(runs(matrix), *axes):
        row = dict(zip(axes, values, strict=True))
        found, plain = runs(matrix, **row), runs(matrix, **{**row, "form": "plain"})
        cells = spread(by_seed(found, column)), difference(found, plain, column)
        rows.append([*(f"`{value}`" for value in values), str(len(found)), *cells])
    teacher = mean(by_seed(runs(matrix)[:1], f"teacher_{score}"))
    table = markdown([*axes, "seeds", f"{title} [%]", "minus plain [points], 95 %"], rows)
    return f"The teacher reaches {teacher} %.\n\n{table}"


TABLES: dict[str, Callable[[], str]] = {
    "methods": lambda: methods("methods"),
    "methods_vit": lambda: methods("methods_vit"),
    "camvid": lambda: scored("camvid", "miou", "mean IoU"),
    "bccd": lambda: scored("bccd", "map", "mAP"),
}
