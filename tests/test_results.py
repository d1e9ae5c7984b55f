"""Every table and figure of results in the documents is what the files in benchmarks/results say."""

import csv
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.append(str(ROOT / "benchmarks"))

import results_page  # noqa: E402
from accuracies import MATRICES, runs, span  # noqa: E402

PAGES = results_page.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_made_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert results_page.filled(text) == text, "run python benchmarks/results_page.py"


def test_every_marker_is_closed_and_every_block_is_used():
    used = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("**/*.md"), *(ROOT / "benchmarks").glob("*.md")):
        marks = re.findall(r"<!-- results:(.*?):(begin|end) -->", page.read_text(encoding="utf-8"))
        opened, closed = marks[::2], marks[1::2]
        assert [(name, "end") for name, _ in opened] == closed, page
        used |= {name for name, _ in marks}
    assert used == set(results_page.BLOCKS)


def test_no_measured_figure_is_written_by_hand():
    """None with the units of our measurements, outside of what is filled in and of commands."""
    filled_in = re.compile(
        r"<!-- results:(.*?):begin -->.*?<!-- results:\1:end -->|^```.*?^```", re.DOTALL | re.MULTILINE
    )
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guide").glob("*.md")):
        text = filled_in.sub("", page.read_text(encoding="utf-8"))
        assert not re.findall(r"\d (?:points|ms)|half a (?:point|second)|\d× |\d\.\d+ ?%", text), page


def test_the_poor_teachers_are_wrong_as_often_as_the_pages_say():
    means = []
    for name in ("weak", "misled"):
        with (RESULTS / "evidence_when.csv").open(encoding="utf-8") as file:
            means.append(
                statistics.mean(float(run["wrong_rate"]) for run in csv.DictReader(file) if run["setting"] == name)
            )
    figure = f"{100 * min(means):.0f} to {100 * max(means):.0f}"
    for page in ("README.md", "docs/results.md", "docs/guide/03_strategy.md"):
        assert figure in (ROOT / page).read_text(encoding="utf-8")


def test_readme_and_guide_agree_on_the_warm_cache():
    found = [json.loads(path.read_text()) for path in RESULTS.glob("throughput_*.json")]
    ratios = [each["warm cache"]["ours"] / each["warm cache"]["supervised"] for each in found]
    said = f"{min(ratios):.2f} to {max(ratios):.2f}"
    assert results_page.BLOCKS["warm cache"]() == said
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["plain", "paper, blend", "ramp, swap"])
def test_a_figure_of_the_headline_computed_independently(form):
    with (RESULTS / "evidence_full.csv").open(encoding="utf-8") as file:
        found = [
            100 * float(run["acc1_last"])
            for run in csv.DictReader(file)
            if (run["method"], run["form"]) == ("kd", form)
        ]
    assert len(found) >= 3
    figure = f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f}"
    for page in ("README.md", "docs/results.md"):
        assert figure in (ROOT / page).read_text(encoding="utf-8")


def test_a_span_names_both_ends_or_one_value():
    assert span([0.449, 2.06, 1.0]) == "0.4 to 2.1"
    assert span([0.42, 0.38]) == "0.4"


def test_every_run_has_its_own_command():
    for matrix in MATRICES:
        found = runs(matrix)
        assert len({run["command"] for run in found}) == len(found)
        for run in found:
            assert run["command"].endswith(f"--seed_everything={run['seed']}")
            if "acc1_last" in run:
                counts = [int(run[name]) for name in ("both", "student_only", "teacher_only", "neither")]
                assert float(run["acc1_last"]) == pytest.approx((counts[0] + counts[1]) / sum(counts), abs=1e-6)


def test_files_that_commands_name_exist():
    for matrix in MATRICES:
        files = {word for run in runs(matrix) for word in re.findall(r"configs/\S+\.yaml", run["command"])}
        assert files
        assert all((ROOT / file).is_file() for file in files)
