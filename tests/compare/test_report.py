"""Table, curves and page, from results as runs write them; and the page in a browser."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lightning_biaskd.compare import Block, Matrix, Outcome, intervals, write_report
from lightning_biaskd.compare.curves import draw, svg
from lightning_biaskd.compare.scheduler import runs_of
from lightning_biaskd.compare.table import columns, csv_table, interval, latex_table, lines, markdown_table, spread

MATRIX = Matrix(
    axes={"method": {"kd": None, "<dkd>": None}, "bias": {"none": None, "a|b": None}},
    seeds=[0, 1, 2],
    rows=[Block(), Block({"method": "kd", "bias": "none"}, seeds=[0, 1, 2, 3])],
    reference={"bias": "none"},
)
ACCURACY = {"kd, none": 0.90, "kd, a|b": 0.93, "<dkd>, none": 0.95, "<dkd>, a|b": 0.91}


def result(run):
    accuracy = ACCURACY[run.row.label] + 0.001 * run.seed**2
    counts = {"student_only": 30.0, "teacher_only": 50.0, "both": 900.0, "neither": 20.0}
    return {
        **{"names": run.row.names, "seed": run.seed, "fingerprint": "f", "command": run.command},
        **{"last": {"acc1": accuracy, **counts}, "best": {"acc1": accuracy + 0.01, **counts}},
        **{"epochs": 4, "validation": {"1": 0.2, "2": accuracy, "3": 0.97, "4": accuracy}, "teacher_validation": 0.98},
        **{"wrong_rate": 0.07, "seconds": 90.0, "resumed": False, "device": "CPU", "versions": {"torch": "2.6"}},
    }


@pytest.fixture
def outcome():
    runs = runs_of(MATRIX)
    missing = [run for run in runs if run.row.label == "<dkd>, a|b" and run.seed == 2]
    return Outcome({run: result(run) for run in runs if run not in missing}, {missing[0]: "RuntimeError: a < b"})


def test_the_table_is_mean_deviation_and_paired_difference(outcome):
    found = {line.row.label: line for line in lines(MATRIX, outcome.results)}
    one = found["kd, none"]
    assert spread(one.last) == "90.35 ± 0.40"  # 90.0, 90.1, 90.4, 90.9
    assert spread(one.best) == "91.35 ± 0.40"
    assert one.difference is None
    assert found["kd, a|b"].difference.n == 3
    assert found["kd, a|b"].difference.mean == pytest.approx(3.0)
    assert interval(found["<dkd>, a|b"].difference) == "−4.00 [−4.00, −4.00]"
    assert (one.teacher.mean, one.right.mean) == (95.0, pytest.approx(100 * 900 / 950))
    assert one.wrong.mean == pytest.approx(60.0)
    assert (one.wrong_rate.mean, one.minutes) == (pytest.approx(7.0), 1.5)


def test_a_row_without_runs_is_a_row_of_dashes():
    for line in lines(MATRIX, {}):
        assert [column.text(line) for column in columns(MATRIX)] == ["0 of " + str(len(line.row.seeds)), *["–"] * 8]


def test_markdown_has_a_cell_for_everything_and_says_what_is_missing(outcome):
    head, rule, *rows = markdown_table(MATRIX, outcome.results).splitlines()
    assert len(rows) == 4
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in (head, rule, *rows)}) == 1
    assert "| 2 of 3 |" in rows[3]
    assert "| kd | a\\|b |" in rows[1]


def test_the_csv_has_a_line_for_every_run(outcome):
    rows = list(csv.DictReader(csv_table(MATRIX, outcome.results).splitlines()))
    assert len(rows) == 12
    row = rows[1]
    assert (row["method"], row["bias"], row["seed"]) == ("kd", "none", "1")
    assert float(row["acc1_last"]) == pytest.approx(0.901)
    assert float(row["acc1_best"]) == pytest.approx(0.911)
    assert (row["best_epoch"], row["val_acc1_best"], row["teacher_acc1"]) == ("3", "0.97", "0.95")
    assert float(row["on_teacher_wrong"]) == pytest.approx(0.6)
    assert row["command"] == "biaskd fit --seed_everything=1"
    assert {"mcnemar_p", "seconds", "torch", "fingerprint", "wrong_rate", "device"} <= set(row)


def test_a_baseline_without_teacher_or_validation_is_told_as_far_as_it_goes():
    matrix = Matrix({"a": {"b": None}}, seeds=[0])
    (run,) = runs_of(matrix)
    alone = {
        **{"names": {"a": "b"}, "seed": 0, "fingerprint": "f", "command": "c", "last": {"acc1": 0.5}, "epochs": 3},
        **{"validation": {}, "teacher_validation": None, "wrong_rate": None, "seconds": 1.0, "resumed": False},
        **{"device": "CPU", "versions": {}},
    }
    (line,) = lines(matrix, {run: alone})
    assert (spread(line.last), spread(line.best), line.teacher.n) == ("50.00", "–", 0)
    (row,) = csv.DictReader(csv_table(matrix, {run: alone}).splitlines())
    assert (row["acc1_last"], row["acc1_best"], row["best_epoch"]) == ("0.5", "", "")
    draw(matrix, {run: alone})


def test_curves_have_a_panel_per_method_and_a_line_per_bias(outcome):
    figure = draw(MATRIX, outcome.results)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["method: kd", "method: <dkd>"]
    for ax in figure.axes:
        curves = {line.get_label(): line for line in ax.get_lines()}
        assert set(curves) == {"none", "a|b", "teacher"}
        assert list(curves["none"].get_xdata()) == [1, 2, 3, 4]
        assert len(ax.collections) == 2  # the bands
        assert ax.get_ylabel().endswith("[%]")
    assert figure.axes[0].get_lines()[0].get_ydata()[1] == pytest.approx(90.35)
    assert svg(figure) == svg(draw(MATRIX, outcome.results))


@pytest.fixture
def report(outcome, tmp_path):
    write_report(MATRIX, outcome, tmp_path, "Shirts & <boots>")
    return tmp_path


def test_the_report_is_there_in_every_form(report):
    assert sorted(path.name for path in report.iterdir()) == [
        *("curves.png", "curves.svg", "intervals.png", "intervals.svg"),
        *("report.html", "report.md", "report.tex", "results.csv"),
    ]
    text = (report / "report.md").read_text()
    assert text.startswith("# Shirts & <boots>\n\n12 of 13 runs, 0.3 hours of training on CPU.")
    assert "- <dkd>, a|b, seed 2: RuntimeError: a < b" in text


def test_the_page_needs_nothing_beside_it_and_escapes_names(report):
    page = (report / "report.html").read_text()
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http" not in without_namespaces
    assert not re.search(r"<(link|img|iframe|script[^>]+src)|@import|url\((?!#)", without_namespaces)
    assert "<dkd>" not in page
    assert "&lt;dkd&gt;" in page
    assert "<title>Shirts &amp; &lt;boots&gt;</title>" in page
    assert "RuntimeError: a &lt; b" in page


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def rows_after(page: Path, *clicks: int):
    """The names of the rows, and aria-sort of the heads, after clicks on the buttons of columns, in a real browser."""
    script = "".join(f"document.querySelectorAll('#rows thead button')[{place}].click();" for place in clicks)
    clicked = page.with_name("clicked.html")
    clicked.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'browser'}"]
    run = subprocess.run(
        [*command, "--dump-dom", clicked.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    table = re.search(r'<table id="rows">.*?</table>', run.stdout, re.DOTALL)[0]
    heads = re.findall(r"<th ([^>]*)>", table)
    names = re.findall(r'<td class="name">(.*?)</td><td class="name">(.*?)</td>', table)
    return [", ".join(pair) for pair in names], [re.findall(r'aria-sort="(\w+)"', head) for head in heads]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_click_on_a_head_sorts_the_table(report):
    page = report / "report.html"
    kd, kd_ab, dkd, dkd_ab = "kd, none", "kd, a|b", "&lt;dkd&gt;, none", "&lt;dkd&gt;, a|b"
    rows, state = rows_after(page)
    assert rows == [kd, kd_ab, dkd, dkd_ab]
    assert not any(state)
    rows, state = rows_after(page, 3)  # the last epoch, highest first
    assert rows == [dkd, kd_ab, dkd_ab, kd]
    assert state == [[], [], [], ["descending"], *[[]] * 7]
    rows, state = rows_after(page, 3, 3)
    assert rows == [kd, dkd_ab, kd_ab, dkd]
    assert state[3] == ["ascending"]
    rows, state = rows_after(page, 3, 5)  # the difference; what has none comes last
    assert rows[:2] == [kd_ab, dkd_ab]
    assert state[3:6] == [[], [], ["descending"]]
    rows, state = rows_after(page, 0)  # names, from a to z
    assert rows == [dkd, dkd_ab, kd, kd_ab]
    assert state[0] == ["ascending"]


def test_unknown_numbers_do_not_break_the_page(tmp_path):
    matrix = Matrix({"a": {"b": None}}, seeds=[0])
    write_report(matrix, Outcome({}, {}), tmp_path)
    assert 'data-value=""' in (tmp_path / "report.html").read_text()


def test_cells_that_a_spreadsheet_would_run_are_marked():
    names = ["=1+1", "+cmd", "-x", "@sum", "-0.5", "plain"]
    matrix = Matrix({"a": dict.fromkeys(names)}, seeds=[0])
    (some,) = (result(run) for run in runs_of(MATRIX)[:1])
    runs = {run: {**some, "names": run.row.names} for run in runs_of(matrix)}
    rows = list(csv.DictReader(csv_table(matrix, runs).splitlines()))
    assert [row["a"] for row in rows] == ["'=1+1", "'+cmd", "'-x", "'@sum", "-0.5", "plain"]


def test_the_latex_table_escapes_what_latex_reads(outcome):
    text = latex_table(MATRIX, outcome.results, "Shirts & 50 %_{x}")
    assert r"\caption{Shirts \& 50 \%\_\{x\}}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 5
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in body}) == 1
    assert r"90.35 $\pm$ 0.40" in text
    assert r"\textless{}dkd\textgreater{}" in text
    assert r"a\textbar{}b" in text


def test_intervals_are_drawn_for_rows_with_a_reference(outcome):
    (ax,) = intervals.draw(MATRIX, outcome.results).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["kd, a|b", "<dkd>, a|b"]
    points = {line.get_label(): line.get_xdata()[0] for line in ax.get_lines() if not line.get_label().startswith("_")}
    assert points["kd, a|b"] == pytest.approx(3.0)
    assert intervals.draw(MATRIX, {}) is None


def test_an_outcome_is_a_table_in_a_notebook(outcome):
    assert outcome._repr_html_() is None
    outcome.matrix = MATRIX
    html = outcome._repr_html_()
    assert "<table" in html
    assert "&lt;dkd&gt;" in html
    assert "RuntimeError: a &lt; b" in html


def test_the_title_names_the_axes_where_none_is_given(outcome, tmp_path):
    write_report(MATRIX, outcome, tmp_path)
    assert "<h1>Comparison by method and bias</h1>" in (tmp_path / "report.html").read_text()
