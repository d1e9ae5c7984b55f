"""What the documents say of accuracies is what the raw results say."""

import csv
import importlib.util
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results_page.py")
results_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results_page)


@pytest.mark.parametrize("page", results_page.PAGES, ids=lambda page: page.stem)
def test_tables_are_made_of_the_raw_results(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- results:" in text
    assert results_page.filled(text) == text, "run python benchmarks/results_page.py"


@pytest.mark.parametrize("form", ["plain", "paper, blend", "ramp, swap"])
def test_a_figure_of_the_headline_computed_anew(form):
    with (ROOT / "benchmarks" / "results" / "evidence_full.csv").open(encoding="utf-8") as file:
        found = [
            100 * float(run["acc1_last"])
            for run in csv.DictReader(file)
            if (run["method"], run["form"]) == ("kd", form)
        ]
    assert len(found) >= 3
    figure = f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f}"
    for page in results_page.PAGES:
        assert figure in page.read_text(encoding="utf-8")


def test_every_run_has_its_own_command():
    for matrix in results_page.MATRICES:
        found = results_page.runs(matrix)
        assert len({run["command"] for run in found}) == len(found)
        for run in found:
            assert run["command"].endswith(f"--seed_everything={run['seed']}")
            counts = [int(run[name]) for name in ("both", "student_only", "teacher_only", "neither")]
            assert float(run["acc1_last"]) == pytest.approx((counts[0] + counts[1]) / sum(counts), abs=1e-6)
