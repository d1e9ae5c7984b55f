"""What an audit found, as text, JSON and picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lightning_biaskd.audit.maps import draw_maps
from lightning_biaskd.bias.rectify import Mode
from lightning_biaskd.bias.strategy import Balance, Normalize
from lightning_biaskd.bias.trusting import LabelTrust
from lightning_biaskd.files import atomic_write

ALMOST_NONE = 0.001
"""Below this wrong-rate there is nothing worth correcting."""


class ClassBias(NamedTuple):
    """What was found on one class.

    Attributes:
        name: of the class.
        views: of its training images.
        wrong_rate: share of them that the teacher gets wrong, NaN if there are none.
        trust: mean share of its weight that the configured strategy leaves the teacher on them when γ = 1, with the
            student as it is; NaN if the strategy has no trust.
    """

    name: str
    views: int
    wrong_rate: float
    trust: float = math.nan


class Mistake(NamedTuple):
    """A label, the answer that the teacher gives instead, on how many views, and on which share of the label's."""

    label: str
    answer: str
    views: int
    share: float


class Correction(NamedTuple):
    """What a rectification mode would do.

    Attributes:
        mode: see :func:`~lightning_biaskd.bias.rectify`.
        temperature: τ, the distiller's.
        not_on_top: share of wrong views whose label does not end on top.
        moved: share of all the probability, at τ, that it moves to another class: the total variation distance between
            the teacher's distributions and the corrected ones, mean over all views.
    """

    mode: Mode
    temperature: float
    not_on_top: float
    moved: float


@dataclass(frozen=True)
class AuditReport:
    """What :func:`~lightning_biaskd.audit.audit` found; ``str`` of it is the text.

    Attributes:
        teacher: its class and size.
        method: the distiller.
        strategy: the :class:`~lightning_biaskd.BiasStrategy` that is configured, ``None`` for plain distillation.
        mode: the strategy's mode. ``normalize``, ``balance``, ``label_trust`` and ``per_teacher`` are the strategy's
            too.
        passes: over the training data.
        views: training views seen.
        wrong: those that the teacher gets wrong.
        confidence_right: mean probability of its first class, at τ = 1, where it is right.
        confidence_wrong: the same where it is wrong.
        label_when_wrong: mean probability of the label where it is wrong.
        label_second: share of wrong views on which the label is its second choice.
        calibration_error: expected calibration error in 15 bins.
        histogram_right: right views by confidence, in bins of equal width over [0, 1].
        histogram_wrong: the same for wrong views.
        classes: by class.
        mistakes: all that occur, the most frequent first.
        corrections: what each mode would do; none if the method reads no logits.
        maps: images, the teacher's logits and labels of a few training views, and the ignored label, if the teacher
            gives maps.
    """

    teacher: str
    method: str
    strategy: str | None
    mode: Mode | None
    normalize: Normalize | None
    balance: Balance | None
    passes: int
    views: int
    wrong: int
    confidence_right: float
    confidence_wrong: float
    label_when_wrong: float
    label_second: float
    calibration_error: float
    histogram_right: list[int]
    histogram_wrong: list[int]
    classes: list[ClassBias]
    mistakes: list[Mistake]
    corrections: list[Correction]
    label_trust: LabelTrust | None = None
    per_teacher: bool = False
    maps: tuple[Tensor, Tensor, Tensor, int | None] | None = field(default=None, repr=False, compare=False)

    @property
    def wrong_rate(self) -> float:
        """Share of training views that the teacher gets wrong."""
        return self.wrong / self.views

    @property
    def verdict(self) -> str:
        """What the strategy can at most change."""
        if self.wrong == 0:
            found = (
                f"The teacher is right on all {self.views:,} views: there is no bias, and correcting it does nothing."
            )
        elif self.wrong_rate < ALMOST_NONE:
            found = (
                f"The teacher is wrong on {self.wrong:,} of {self.views:,} views ({self.wrong_rate:.2%}): there is "
                "next to no bias, and correcting it will do nothing that can be measured."
            )
        else:
            found = (
                f"At most {self.wrong:,} of {self.views:,} outputs ({self.wrong_rate:.1%}) can be corrected; for all "
                "others, the strategy changes only the weight."
            )
        if self.wrong_rate < ALMOST_NONE and self.balance == "complement":
            found += " With balance=complement it still fades right knowledge out: choose ramp, or bias null."
        return found

    @property
    def configured(self) -> str:
        """What the configured strategy does with the wrong answers."""
        if self.mode is None or self.mode == "none":
            plain = "Plain distillation" if self.mode is None else "Mode none"
            return f"{plain} hands the {self.wrong:,} wrong answers on as they are."
        if self.mode == "drop" or not self.corrections:
            why = "Mode drop" if self.mode == "drop" else "The method reads no logits, so the strategy"
            done = f"{why} drops the {self.wrong:,} wrong answers."
            if self.per_teacher and self.mode == "drop":
                done = "Mode drop leaves each wrong teacher out of the mean, and drops samples on which all are wrong."
        elif self.per_teacher:
            done = f"Mode {self.mode} corrects the answer of each teacher before the mean."
        else:
            kept = _percent(max(c.not_on_top for c in self.corrections if c.mode == self.mode))
            done = f"Mode {self.mode} corrects them; the label does not end on top on {kept} of them."
            if self.label_trust is not None:
                done = (
                    f"Mode {self.mode} corrects them in part, as label_trust={self.label_trust} decides. Corrected in "
                    f"full, {kept} would still have another class on top."
                )
        if self.normalize == "group" and 0 < self.wrong < self.views and self.mode != "drop" and self.corrections:
            ratio = (self.views - self.wrong) / self.wrong
            when = "γ = ½" if self.balance == "complement" else "γ = 1"
            done += f" With normalize=group one wrong view weighs as much as {ratio:.0f} right ones at {when}."
        return done

    def _facts(self) -> list[tuple[str, str]]:
        """What a line each says, by its first word."""
        facts = [
            ("Teacher", self.teacher),
            ("Method", self.method),
            ("Strategy", self.strategy or "none: plain distillation"),
            ("Seen", f"{self.views:,} training views, augmented, in {self.passes} pass{'es' * (self.passes > 1)}"),
            ("Wrong on", f"{self.wrong:,} views, {self.wrong_rate:.2%}"),
            (
                "Confidence",
                f"{_percent(self.confidence_right)} where right, {_percent(self.confidence_wrong)} where wrong; "
                f"calibration error {_percent(self.calibration_error)}",
            ),
        ]
        if self.wrong:
            label = f"where wrong, it has {_percent(self.label_when_wrong)} of the probability and is the second choice"
            facts.append(("Label", f"{label} on {_percent(self.label_second)}"))
        return facts

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, head and rows of each table; those without rows are left out."""
        worst = sorted((c for c in self.classes if c.wrong_rate > 0), key=lambda c: -c.wrong_rate)
        trusted = sorted((c for c in self.classes if not math.isnan(c.trust)), key=lambda c: c.trust)
        tables = [
            ("Classes most often wrong", ["class", "wrong", "views"], [
                [c.name, _percent(c.wrong_rate), f"{c.views:,}"] for c in worst[:10]
            ]),
            ("Classes that get the least of the teacher, with the student as it is", ["class", "share", "wrong"], [
                [c.name, _percent(c.trust), _percent(c.wrong_rate)] for c in trusted[:10]
            ]),
            ("Commonest mistakes", ["label → answer", "views", "of the label's"], [
                [f"{m.label} → {m.answer}", f"{m.views:,}", _percent(m.share)] for m in self.mistakes[:10]
            ]),
            ("What each correction would do", ["mode", "τ", "label not on top", "probability moved"], [
                [c.mode, f"{c.temperature:g}", _percent(c.not_on_top), _percent(c.moved)] for c in self.corrections
            ]),
        ]  # fmt: skip
        return [table for table in tables if table[2]] if self.wrong else []

    def __str__(self) -> str:
        facts = [f"{name:12}{text}" for name, text in self._facts()]
        tables = [line for table in self._tables() for line in _table(*table)]
        return "\n".join([*facts[:4], "", *facts[4:], *tables, "", self.verdict, self.configured])

    def _repr_html_(self) -> str:
        """The report as a notebook shows it."""
        facts = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self._facts())
        tables = "".join(_html_table(*table) for table in self._tables())
        return f"<table>{facts}</table>{tables}<p>{escape(self.verdict)}<br>{escape(self.configured)}</p>"

    def to_dict(self) -> dict[str, Any]:
        """Everything, of JSON's types; ``None`` for what has no samples."""
        rows = {
            name: [{key: _known(value) for key, value in row._asdict().items()} for row in getattr(self, name)]
            for name in ("classes", "mistakes", "corrections")
        }
        scalars = asdict(replace(self, classes=[], mistakes=[], corrections=[], maps=None))
        del scalars["maps"]
        return {key: _known(value) for key, value in scalars.items()} | {
            "wrong_rate": self.wrong_rate,
            "verdict": self.verdict,
            "configured": self.configured,
            **rows,
        }

    def save(self, folder: str | Path) -> None:
        """Writes ``audit.txt``, ``audit.json`` and ``audit.png`` into a folder, and ``maps.png`` for a teacher of maps.

        Raises:
            UserError: matplotlib is missing.
        """
        from lightning_biaskd.audit.picture import draw

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        for name, text in (("audit.txt", str(self)), ("audit.json", content)):
            with atomic_write(folder / name, "w") as file:
                file.write(f"{text}\n")
        with atomic_write(folder / "audit.png") as file:
            draw(self).savefig(file, format="png")
        if self.maps is not None:
            with atomic_write(folder / "maps.png") as file:
                draw_maps(*self.maps).savefig(file, format="png")


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _html_row(kind: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"


def _html_table(title: str, head: list[str], rows: list[list[str]]) -> str:
    body = "".join([_html_row("th", head), *(_html_row("td", row) for row in rows)])
    return f"<p><b>{escape(title)}</b></p><table>{body}</table>"


def _table(title: str, head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  " + "  ".join(cells)

    return ["", title, line(head), *(line(row) for row in rows)]
