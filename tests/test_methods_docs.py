"""docs/methods.md, and the cards made of it, tell the truth about the code."""

import ast
import inspect
import re

import cards
import pytest

from lightning_biaskd import Distiller, distillers
from lightning_biaskd.command_line.shipped import CONFIGS

ROWS = {name: list(row.values()) for name, row in cards.rows().items()}
EXPORTED = {
    name
    for name in distillers.__all__
    if inspect.isclass(value := getattr(distillers, name)) and issubclass(value, Distiller)
} - {"Distiller", "FeatureDistiller"}
VALUE = r"None|True|False|\(.*?\)|\"[^\"]*\"|-?[0-9][0-9.e-]*"


def test_every_exported_distiller_has_a_row():
    assert set(ROWS) == EXPORTED
    assert all(len(cells) == 6 and all(cells) for cells in ROWS.values())


def test_every_method_file_is_named():
    named = {file for cells in ROWS.values() for file in re.findall(r"`(\w+\.yaml)`", cells[4])}
    assert named == {path.name for path in (CONFIGS / "method").glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_the_defaults_are_the_constructors(name):
    told = {key: ast.literal_eval(value) for key, value in re.findall(rf"`(\w+)` ({VALUE})", ROWS[name][3])}
    parameters = inspect.signature(getattr(distillers, name)).parameters.values()
    assert told == {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_every_exported_distiller_has_a_card(name):
    card = cards.card(name)
    note = cards.notes()[name]
    assert f"**When to use it.** {note['when']}" in card
    assert f".. autoclass:: {name}\n" in card
    assert ("@" in card) == (name != "WeightedSum")  # which is of no paper


def test_no_note_or_reference_is_left_over():
    assert set(cards.notes()) == EXPORTED == set(cards.methods())
    cited = {note["cite"] for note in cards.notes().values()} - {None}
    assert set(cards.references()) == cited | {"zhang2025bias"}


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_the_citation_is_of_the_paper_in_the_row(name):
    key = cards.notes()[name]["cite"]
    entry = cards.references().get(key, "")
    number, year = (re.search(rf"{field} = {{(.*?)}}", entry) for field in ("eprint", "year"))
    paper = ROWS[name][1] if ROWS[name][1] != "the same" else ROWS["TTM"][1]
    assert not number or number[1] in paper
    assert not year or year[1] in paper or name == "RC"


def test_every_function_beside_a_method_is_on_one_card():
    shown = [member for name in cards.methods() for member in cards.members(name)]
    assert sorted([*shown, "Distiller", "FeatureDistiller", "kl_divergence", "without_label"]) == sorted(
        distillers.__all__
    )
