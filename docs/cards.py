"""Builds a page for each method from methods.md, methods.yaml, references.bib and the docstrings."""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path

import yaml

from lightning_biaskd import distillers

HERE = Path(__file__).parent


def methods() -> list[str]:
    """Names of the exported methods."""
    classes = [name for name in distillers.__all__ if inspect.isclass(getattr(distillers, name))]
    return [name for name in classes if name not in ("Distiller", "FeatureDistiller")]


@cache
def rows() -> dict[str, dict[str, str]]:
    """What the table in methods.md says of each method, by the table's headings."""
    lines = (HERE / "methods.md").read_text(encoding="utf-8").split("\n## The methods")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    headings, *body = cells
    return {row[0].strip("`"): dict(zip(headings, row, strict=True)) for row in body}


@cache
def notes() -> dict[str, dict[str, str | None]]:
    """When to use each method, and the key of its citation."""
    return yaml.safe_load((HERE / "methods.yaml").read_text(encoding="utf-8"))


@cache
def references() -> dict[str, str]:
    """BibTeX entries by key."""
    text = (HERE / "references.bib").read_text(encoding="utf-8")
    return {found[1]: found[0] for found in re.finditer(r"^@\w+{(\w+),\n.*?^}$", text, re.M | re.S)}


def members(name: str) -> list[str]:
    """A method's class, and the functions that are exported beside it."""
    module = getattr(distillers, name).__module__
    beside = [other for other in distillers.__all__ if getattr(distillers, other).__module__ == module]
    functions = [other for other in beside if other not in methods()]
    if len(beside) - len(functions) > 1:  # a file with two methods
        functions = [other for other in functions if other == f"{_snake(name)}_loss"]
    return [name, *functions]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def card(name: str) -> str:
    """One method's page; a ``KeyError`` where any part of it is missing."""
    row, note = rows()[name], notes()[name]
    facts = [f"{heading[0].upper()}{heading[1:]}\n: {cell}\n" for heading, cell in list(row.items())[1:]]
    documented = [
        f".. autoclass:: {member}\n   :no-members:\n" if member == name else f".. autofunction:: {member}\n"
        for member in members(name)
    ]
    files = re.findall(r"`(\w+\.yaml)`", row["YAML in `configs/method/`"])
    parts = [
        f"# {name}\n",
        f"**When to use it.** {note['when']}\n",
        *facts,
        "```{eval-rst}",
        ".. currentmodule:: lightning_biaskd.distillers\n",
        *documented,
        "```\n",
        *(["## On the command line\n"] if files else []),
        *(
            f"```{{literalinclude}} ../../configs/method/{file}\n:caption: configs/method/{file}\n```\n"
            for file in files
        ),
        *([f"## Citation\n\n```bibtex\n{references()[note['cite']]}\n```\n"] if note["cite"] else []),
    ]
    return "\n".join(parts)


def write(folder: Path) -> None:
    """Writes all pages and removes stale ones. Unchanged pages stay, so that Sphinx does not read them again."""
    folder.mkdir(exist_ok=True)
    pages = {folder / f"{name}.md": card(name) for name in methods()}
    for stale in set(folder.iterdir()) - set(pages):
        stale.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
