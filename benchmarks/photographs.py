"""Tables of the evidence on photographs: which form of the strategy is safe whatever the teacher."""

from __future__ import annotations

from collections.abc import Callable

from accuracies import Runs, ahead, by_seed, markdown, mean, names, runs, spread

from lightning_biaskd.compare.statistics import Difference, paired_difference
from lightning_biaskd.compare.table import interval

BASELINES = ("alone", "plain")
CHOSEN_IN = ("strong", "shifted", "weak", "equal", "noise", "foreign")
"""The settings by which the recommended form was chosen."""
RECOMMENDED = "run, swap by run, discount, 1 + ½"
"""The form of configs/bias/recommended.yaml."""
AROUND = tuple(f"{method}, recommended" for method in ("PLD", "WSLD", "RLD", "DKD"))
RIVALS = ("smoothing", "plain, 0.1 + 0.9", "MFT", *(form.partition(",")[0] for form in AROUND))
"""Other answers to a wrong teacher; those that are methods also with the recommended form."""
TITLES = {
    "alone": "student alone",
    "plain": "plain KD, ½ + ½",
    "plain, 1 + ½": "plain KD, 1 + ½",
    "paper": "`bias/paper.yaml`",
    RECOMMENDED: "**`bias/recommended.yaml`**",
}
PARTS = {
    "run, swap by run, 1 + ½": "no discount",
    "run, swap, 1 + ½": "labels always trusted",
    "run, 1 + ½": "no correction",
    "run, drop, 1 + ½": "elimination in place of correction",
    "run, revise by run, 1 + ½": "another correction, and no discount",
    "run, swap by student, 1 + ½": "labels trusted sample by sample, and no discount",
    "swap by run, 1 + ½": "no trust in the teacher, which always teaches, and no discount",
    "run, swap by run, refund": "cross-entropy ½, and what the teacher loses",
    "plain, 1 + ½": "neither trust nor correction",
}


def _settings() -> list[str]:
    return [name for (name,) in names(runs("photos"), "setting")]


def _forms() -> list[str]:
    """The forms around KD."""
    return [form for (form,) in names(runs("photos"), "form") if form not in RIVALS + AROUND]


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
    """Every form around KD in every setting by which one was chosen, on test images."""
    settings = [runs("photos", setting=name) for name in CHOSEN_IN]
    rows = [
        ["the teacher", *(mean(by_seed(found, "teacher_acc1")) for found in settings)],
        ["its training views that it gets wrong", *(mean(by_seed(found, "wrong_rate")) for found in settings)],
        *([f"`{form}`", *_scores(form)] for form in _forms()),
    ]
    return markdown(["top-1 on test images [%]", *CHOSEN_IN], rows)


def _scores(form: str) -> list[str]:
    return [spread(by_seed(_of(name, form), "acc1_last")) for name in CHOSEN_IN]


def rivals() -> str:
    """Other answers to a wrong teacher, by the seed that all of them have."""
    rows = []
    for form in (*BASELINES, "plain, 1 + ½", *RIVALS, *AROUND, RECOMMENDED):
        found = [runs("photos", setting=name, form=form, seed="0") for name in CHOSEN_IN]
        rows.append([f"`{form}`", *(mean(by_seed(each, "acc1_last")) for each in found)])
    return markdown(["top-1 on test images [%], seed 0", *CHOSEN_IN], rows)


def _margins(form: str, column: str) -> dict[str, Difference]:
    """By setting, of those in which the form was run."""
    return {name: margin(name, form, column) for name in _settings() if _of(name, form)}


def worst(column: str) -> str:
    """For each form, its margin over the better baseline in every setting, and the smallest of them."""
    rows = []
    for form in _forms():
        margins = {name: found for name, found in _margins(form, column).items() if name in CHOSEN_IN}
        told = [interval(margins[name]) if name in margins else "–" for name in CHOSEN_IN]
        least = min(margins.values(), key=lambda found: found.mean)
        rows.append([f"`{form}`", *told, f"**{interval(least)}**" if len(margins) == len(told) else "–"])
    return markdown(["form − max(alone, plain KD) [points]", *CHOSEN_IN, "worst case"], rows)


def headline() -> str:
    """The recommended form, plain KD, the student alone and the paper's form in every setting."""
    margins = _margins(RECOMMENDED, "acc1_last")
    rows = []
    for name in _settings():
        found = runs("photos", setting=name)
        rows.append(
            [
                name,
                *(mean(by_seed(found, column)) for column in ("teacher_acc1", "wrong_rate")),
                *(spread(by_seed(_of(name, form), "acc1_last")) for form in TITLES),
                interval(margins[name]),
            ]
        )
    return markdown(
        [
            "top-1 on test images [%]",
            "teacher",
            "teacher wrong on [% of training views]",
            *TITLES.values(),
            "recommended − the better of alone and plain KD, ½ + ½",
        ],
        rows,
    )


def twins() -> str:
    """Runs of the recommended form and their twins: the same seeds, and sums that are rounded in another order."""
    rows = []
    for (setting,) in names(runs("photos_before"), "setting"):
        pair = runs("photos_before", setting=setting), _of(setting, RECOMMENDED)
        before, now = (by_seed(found, "acc1_last") for found in pair)
        most = max(abs(before[seed] - now[seed]) for seed in before)
        rows.append([setting, spread(before), spread(now), interval(paired_difference(now, before)), f"{most:.2f}"])
    head = ["top-1 on test images [%]", "first", "second", "second − first [points], 95 %", "largest of one seed"]
    return markdown(head, rows)


def ablation() -> str:
    """How many points the recommended form is ahead of those that differ from it in one part."""
    rows = []
    for form, title in PARTS.items():
        cells = []
        for name in CHOSEN_IN:
            recommended, other = (by_seed(_of(name, which), "acc1_last") for which in (RECOMMENDED, form))
            cells.append(interval(paired_difference(recommended, other)) if other else "–")
        rows.append([f"{title}: `{form}`", *cells])
    return markdown(["recommended − the form [points]", *CHOSEN_IN], rows)


def _beyond() -> str:
    """In how many runs the student ends ahead of its teacher, by setting."""
    told = []
    for name in _settings():
        for form, title in ((RECOMMENDED, "recommended"), ("plain", "plain KD")):
            found = _of(name, form)
            most = max(100 * (float(run["acc1_last"]) - float(run["teacher_acc1"])) for run in found)
            by = f", by up to {most:.1f} points" if most > 0 else ""
            told.append(f"- {name}, {title}: {ahead(found)}{by}")
    return "\n".join(told)


def _least() -> str:
    """The smallest margin of the recommended form."""
    return _points(min(found.mean for found in _margins(RECOMMENDED, "acc1_last").values()))


def _points(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


TABLES: dict[str, Callable[[], str]] = {
    "photos": by_setting,
    "photos headline": headline,
    "photos worst, validation": lambda: worst("val_acc1_last"),
    "photos worst, test": lambda: worst("acc1_last"),
    "photos ablation": ablation,
    "photos twins": twins,
    "photos rivals": rivals,
    "photos beyond": _beyond,
}
FIGURES: dict[str, Callable[[], str]] = {
    "photos runs": lambda: str(len(runs("photos"))),
    "photos least": _least,
    "photos noise, labels trusted": lambda: _points(_margins("run, swap, 1 + ½", "acc1_last")["noise"].mean),
    "photos foreign": lambda: _points(_margins(RECOMMENDED, "acc1_last")["foreign"].mean),
    "photos own": lambda: _points(_margins(RECOMMENDED, "acc1_last")["own"].mean),
    "photos long": lambda: _points(_margins(RECOMMENDED, "acc1_last")["long"].mean),
    "photos same noise": lambda: _points(_margins(RECOMMENDED, "acc1_last")["same noise"].mean),
    "photos noise 20 %": lambda: _points(_margins(RECOMMENDED, "val_acc1_last")["noise 20 %"].mean),
}
