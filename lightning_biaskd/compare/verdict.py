"""The verdict of a comparison: the row that is best on validation images, and whether it differs from the baselines."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from lightning_biaskd.compare.matrix import Matrix, Row, Run
from lightning_biaskd.compare.statistics import Difference, paired_difference, summary
from lightning_biaskd.compare.table import Results, accuracies, interval, spread


@dataclass(frozen=True)
class Verdict:
    """On rows that may be compared with each other.

    Attributes:
        setting: the names that these rows share, by axis; empty if all rows of the matrix may be compared.
        run: the first run of the best row; ``None`` if no row can be chosen.
        sentences: for people.
    """

    setting: dict[str, str]
    run: Run | None
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it."""
        where = f"{', '.join(self.setting.values())}: " if self.setting else ""
        return where + " ".join(self.sentences)


def verdicts(matrix: Matrix, results: Results) -> list[Verdict]:
    """One verdict for each setting, that is for each combination of names on the axes that no baseline names.

    The rows of a setting are compared by their validation accuracy after the last epoch, as the mean over the seeds
    that all of them have. Of rows that are level, the first is chosen. Test images take no part in the choice.

    Args:
        matrix: what was run. Without ``baselines``, the reference row is the only one.
        results: of the runs that are done.
    """
    baselines = matrix.baselines or ({"the reference row": matrix.reference} if matrix.reference else {})
    named = {axis for names in baselines.values() for axis in names}
    settings: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in matrix.expanded():
        shared = {axis: name for axis, name in row.names.items() if named and axis not in named}
        settings.setdefault(tuple(shared.items()), []).append(row)
    return [
        _verdict(dict(setting), rows, baselines, matrix, results)
        for setting, rows in settings.items()
        if len(rows) > 1 and any(run in results for row in rows for run in row.runs())
    ]


def _verdict(
    setting: dict[str, str], rows: list[Row], baselines: dict[str, dict[str, str]], matrix: Matrix, results: Results
) -> Verdict:
    validation = {row: found for row in rows if (found := _validation(row, results))}
    if not validation:
        return Verdict(setting, None, ("No row is chosen, as no run has a validation accuracy.",))
    seeds = set.intersection(*map(set, validation.values()))
    means = {row: statistics.fmean(found[seed] for seed in seeds or found) for row, found in validation.items()}
    best = max(means, key=lambda row: means[row])  # the first of those that are level
    used = sorted(seeds or validation[best])
    over = f"mean over the seeds {', '.join(map(str, used))}" if len(used) > 1 else f"seed {used[0]} alone"
    so_far = "" if all(run in results for row in rows for run in row.runs()) else " so far"
    test = spread(summary(list(accuracies(best, results).values())))
    level = [_label(row, setting) for row in rows if row is not best and means.get(row) == means[best]]
    others = {name: row for name, names in baselines.items() if (row := matrix.row_like(best, names)) is not None}
    same = [name for name, row in others.items() if row == best]
    differences = [
        f"to {name} {_told(paired_difference(accuracies(best, results), accuracies(row, results)))}"
        for name, row in others.items()
        if row != best
    ]
    sentences = [
        f"Best on validation images{so_far}: {_label(best, setting)}, with {means[best]:.2f} % after the last epoch "
        f"({over}); on test images {test} %.",
        *([f"Level with it, but later in the matrix: {'; '.join(level)}."] if level else []),
        *(f"It is {name} itself." for name in same),
        *([f"Differences on test images, paired by seed: {'; '.join(differences)}."] if differences else []),
    ]
    return Verdict(setting, next(run for run in best.runs() if run.seed in used), tuple(sentences))


def _label(row: Row, setting: dict[str, str]) -> str:
    return ", ".join(name for axis, name in row.names.items() if axis not in setting)


def _told(found: Difference) -> str:
    if found.n == 0:
        return "unknown, as they have no seed in common yet"
    if found.n == 1:
        return f"{interval(found)} points, but one seed can't tell them apart: add seeds"
    clear = found.low > 0 or found.high < 0
    return f"{interval(found)} points (95 %), {'' if clear else 'not '}distinguishable"


def _validation(row: Row, results: Results) -> dict[int, float]:
    """By seed: validation accuracy after the last epoch, in percent."""
    found = {run.seed: results[run]["validation"] for run in row.runs() if run in results}
    last = {seed: 100 * curve[max(curve, key=int)] for seed, curve in found.items() if curve}
    return {seed: value for seed, value in last.items() if not math.isnan(value)}
