"""The files around the package are valid and agree with it."""

from pathlib import Path

import pytest
import yaml

import lightning_biaskd

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "CITATION.cff", ROOT / ".readthedocs.yaml", *sorted((ROOT / ".github").rglob("*.yml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_is_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == lightning_biaskd.__version__
    paper = citation["preferred-citation"]
    bibtex = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8").partition("\n}")[0]
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author = {{{names}}}" in bibtex
    assert paper["title"].replace("Distilling", "{D}istilling") in bibtex


def test_the_changelog_has_this_version():
    assert f"{lightning_biaskd.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_is_typed():
    assert (Path(lightning_biaskd.__file__).parent / "py.typed").is_file()


def test_workflows_test_every_supported_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pythons = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert f'requires-python = ">={pythons[0]}"' in text
    assert all(f"Python :: {python}" in text for python in pythons)
