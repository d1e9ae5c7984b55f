"""The API pages show every public name."""

import importlib
import pkgutil
import re
from pathlib import Path

import cards
import pytest

import lightning_biaskd

API = Path(__file__).parents[1] / "docs" / "api"
PACKAGES = ["lightning_biaskd"] + [
    name
    for info in pkgutil.iter_modules(lightning_biaskd.__path__)
    if info.ispkg and hasattr(importlib.import_module(name := f"lightning_biaskd.{info.name}"), "__all__")
]


def exported(package):
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


def documented(text):
    """The objects that a page's directives document."""
    current = None
    for line in re.sub(r"\.\. automodule:: \S+\n   :no-members:", "", text).splitlines():
        match line.removeprefix(".. ").split(":: "):
            case ["currentmodule", name]:
                current = importlib.import_module(name)
            case ["automodule", name]:
                module = importlib.import_module(name)
                yield from (getattr(module, member) for member in getattr(module, "__all__", []))
            case ["autoclass" | "autofunction" | "autoexception", name] if "." not in name:
                yield getattr(current, name)


DOCUMENTED = [
    value
    for text in [*(page.read_text() for page in API.glob("*.rst")), *map(cards.card, cards.methods())]
    for value in documented(text)
]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package):
    assert exported(package)
    for name, value in exported(package).items():
        assert any(value is shown for shown in DOCUMENTED), name
        assert value.__doc__, name  # without one it would be left out


def test_no_name_is_documented_twice():
    twice = {value.__name__ for value in DOCUMENTED if sum(value is other for other in DOCUMENTED) > 1}
    assert not twice


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^   (\w+)$", (API / "index.rst").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in API.glob("*.rst") if page.stem != "index")
