"""Tables of the evidence on photographs: which form of the strategy is safe whatever the teacher."""

from __future__ import annotations

from collections.abc import Callable

from accuracies import Runs, ahead, by_seed, markdown, mean, names, runs, spread

from lightning_biaskd.compare.statistics import Difference, paired_difference
from lightning_biaskd.compare.table import interval

BASELINES = ("alone", "plain")


def _settings() -> list[str]:
    return [name for (name,) in names(runs("photos"), "setting")]


def _forms() -> list[str]:
    return [form for (form,) in names(runs("photos"), "form")]


def _of(setting: str, form: str) -> Runs:
    return runs("photos", setting=setting, form=form)


def _best_baseline(setting: str, column: str) -> str:
    """The better of the student alone and plain KD, by the mean over seeds."""
    return max(BASELINES, key=lambda form: float(mean(by_seed(_of(setting, form), column))))


def margin(setting: str, form: str, column: str) -> Difference:
    """Points of a form over the better of the student alone and plain KD, paired by seed."""
    baseline = _best_baseline(setting, column)
    return paired_difference(by_seed(_of(setting, form), column), by_seed(_of(setting, baseline), column))


def by_setting() -> str:
    """Every form in every setting, on test images."""
    settings = [runs("photos", setting=name) for name in _settings()]
    rows = [
        ["the teacher", *(mean(by_seed(found, "teacher_acc1")) for found in settings)],
        ["its training views that it gets wrong", *(mean(by_seed(found, "wrong_rate")) for found in settings)],
    ]
    for form in _forms():
        rows.append([f"`{form}`", *(spread(by_seed(_of(name, form), "acc1_last")) for name in _settings())])
    return markdown(["top-1 on test images [%]", *_settings()], rows)


def worst(column: str) -> str:
    """For each form, its margin over the better baseline in every setting, and the smallest."""
    rows = []
    for form in _forms():
        margins = [margin(name, form, column) for name in _settings()]
        least = min(margins, key=lambda found: found.mean)
        rows.append([f"`{form}`", *map(interval, margins), f"**{interval(least)}**"])
    return markdown(["form − max(alone, plain KD) [points]", *_settings(), "worst case"], rows)


def _beyond() -> str:
    """In how many runs the student ends ahead of its teacher, by setting."""
    told = []
    for name in _settings():
        found = [run for run in runs("photos", setting=name) if run["form"] != "alone"]
        most = max(100 * (float(run["acc1_last"]) - float(run["teacher_acc1"])) for run in found)
        told.append(f"- {name}: {ahead(found)} distilled students{f', by up to {most:.1f} points' if most > 0 else ''}")
    return "\n".join(told)


TABLES: dict[str, Callable[[], str]] = {
    "photos": by_setting,
    "photos worst, validation": lambda: worst("val_acc1_last"),
    "photos worst, test": lambda: worst("acc1_last"),
    "photos beyond": _beyond,
}
FIGURES: dict[str, Callable[[], str]] = {
    "photos seeds": lambda: str(len({run["seed"] for run in runs("photos")})),
    "photos runs": lambda: str(len(runs("photos"))),
}
