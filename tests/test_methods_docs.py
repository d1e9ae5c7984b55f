"""docs/methods.md tells the truth about the code."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from lightning_biaskd import Distiller, distillers
from lightning_biaskd.cli import CONFIGS

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
TABLE = PAGE.split("## The methods")[1].split("\n## ")[0]
ROWS = {
    cells[0].strip("`"): cells
    for line in TABLE.splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}
EXPORTED = {
    name
    for name in distillers.__all__
    if inspect.isclass(value := getattr(distillers, name)) and issubclass(value, Distiller)
} - {"Distiller"}
VALUE = r"None|True|False|\(.*?\)|\"[^\"]*\"|-?[0-9][0-9.e-]*"


def test_every_exported_distiller_has_a_row():
    assert set(ROWS) == EXPORTED
    assert all(len(cells) == 6 and all(cells) for cells in ROWS.values())


def test_every_method_file_is_named():
    named = set(re.findall(r"`(\w+\.yaml)`", TABLE))
    assert named == {path.name for path in (CONFIGS / "method").glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_the_defaults_are_the_constructors(name):
    told = {key: ast.literal_eval(value) for key, value in re.findall(rf"`(\w+)` ({VALUE})", ROWS[name][3])}
    parameters = inspect.signature(getattr(distillers, name)).parameters.values()
    assert told == {p.name: p.default for p in parameters if p.default is not p.empty}
