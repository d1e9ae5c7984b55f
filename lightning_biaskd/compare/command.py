"""``biaskd compare``: from a matrix in YAML to a report."""

from __future__ import annotations

import shlex
import time
from dataclasses import fields
from itertools import islice
from pathlib import Path

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]  # public, if not in its __all__
from lightning.pytorch.utilities import rank_zero_warn

from lightning_biaskd.command_line.arguments import BriefParser
from lightning_biaskd.compare import intervals
from lightning_biaskd.compare.chosen import write_chosen
from lightning_biaskd.compare.curves import draw
from lightning_biaskd.compare.folder import RESULT, result_in
from lightning_biaskd.compare.matrix import Matrix, Run
from lightning_biaskd.compare.page import page
from lightning_biaskd.compare.scheduler import Outcome, outcome_so_far, run_matrix, runs_of
from lightning_biaskd.compare.table import csv_table, latex_table, legend, markdown_table
from lightning_biaskd.compare.verdict import verdicts
from lightning_biaskd.errors import UserError
from lightning_biaskd.files import atomic_write
from lightning_biaskd.plotting import require_matplotlib

REFRESH_SECONDS = 60.0
"""How often at most the report is written while runs go on."""


def compare(
    matrix: Matrix,
    output: str | Path = "compare",
    jobs: int | None = None,
    threads: int | None = None,
    title: str | None = None,
) -> Outcome:
    """Runs what a matrix misses and writes its report.

    In ``output``: ``report.html``, ``report.md``, ``report.tex``, ``results.csv``, ``curves`` and ``intervals`` as
    ``.png`` and ``.svg``, and a folder for each run under ``runs`` with its ``config.yaml``, ``run.log``, checkpoints
    and ``result.json``. The report is updated while runs go on. It ends with a verdict: the row that is best on
    validation images and its differences to the matrix's ``baselines``; ``chosen.yaml`` is its configuration.

    Args:
        matrix: what to run.
        output: folder for everything.
        jobs: runs at a time; ``None`` for one per GPU, or one on the CPU.
        threads: of each run on the CPU; ``None`` for ``OMP_NUM_THREADS``, or a share of the cores.
        title: of the report; ``None`` names the axes.

    Returns:
        Results and failures, which a notebook shows as a table.

    Raises:
        UserError: before anything is run: what is wrong with the matrix, or matplotlib is missing.
    """
    require_matplotlib()
    output = Path(output)
    written = time.monotonic()

    def changed(outcome: Outcome) -> None:
        nonlocal written
        if time.monotonic() - written > REFRESH_SECONDS:
            try:
                write_report(matrix, outcome, output, title)
            except OSError as error:  # a full disk must not end runs that go on
                rank_zero_warn(f"the report can't be written now ({error.strerror}); the runs go on")
            written = time.monotonic()

    outcome = run_matrix(matrix, output, jobs, threads, changed)
    write_report(matrix, outcome, output, title)
    return outcome


def write_report(matrix: Matrix, outcome: Outcome, output: Path, title: str | None = None) -> None:
    """Writes the files of the report and the configuration of the row that is best; notes the verdict."""
    output.mkdir(parents=True, exist_ok=True)
    title = title or f"Comparison by {' and '.join(matrix.axes)}"
    facts = _facts(matrix, outcome)
    differences = intervals.draw(matrix, outcome.results)
    outcome.verdict = _verdict(matrix, outcome, output)
    failed = [f"- {run.label}: {line}" for run, line in outcome.failures.items()]
    markdown = [
        f"# {title}",
        "  \n".join(facts),
        *(["Failed; the same command tries them again:\n\n" + "\n".join(failed)] if failed else []),
        markdown_table(matrix, outcome.results),
        "\n".join(f"- {line}" for line in legend(matrix)),
        *(["![differences](intervals.png)"] if differences is not None else []),
        "![curves](curves.png)",
        "Every run by hand is a line `command` of [results.csv](results.csv).",
        *(["## Verdict", *outcome.verdict] if outcome.verdict else []),
    ]
    for name, figure in (("curves", draw(matrix, outcome.results)), ("intervals", differences)):
        for form in ("png", "svg"):
            if figure is not None:
                with atomic_write(output / f"{name}.{form}") as file:
                    figure.savefig(file, format=form, dpi=150)
    texts = {
        "report.md": "\n\n".join(markdown) + "\n",
        "report.tex": latex_table(matrix, outcome.results, title),
        "results.csv": csv_table(matrix, outcome.results),
        "report.html": page(title, matrix, outcome, facts),
    }
    for name, text in texts.items():
        with atomic_write(output / name, "w") as file:
            file.write(text)


def _verdict(matrix: Matrix, outcome: Outcome, output: Path) -> list[str]:
    told = []
    for verdict in verdicts(matrix, outcome.results):
        path = write_chosen(verdict, outcome.results, output)
        how = "" if path is None else f" To train it again: {shlex.join(['biaskd', 'fit', '-c', str(path)])}"
        told.append(verdict.text + how)
    return told


def _facts(matrix: Matrix, outcome: Outcome) -> list[str]:
    found = list(outcome.results.values())
    hours = sum(result["seconds"] for result in found) / 3600
    devices = sorted({result["device"] for result in found})
    versions = sorted({", ".join(f"{name} {number}" for name, number in r["versions"].items()) for r in found})
    on = f" on {', '.join(devices)}" if devices else ""
    return [f"{len(found)} of {len(runs_of(matrix))} runs, {hours:.1f} hours of training{on}.", *versions]


def parser() -> BriefParser:
    """The parser of the command."""
    built = BriefParser(prog="biaskd compare", description="Run a matrix of trainings, and report on it.")
    told = "YAML file of the matrix. Files of data and pair after it are added to its base."
    built.add_argument("-c", "--config", action=ActionConfigFile, help=told)
    built.add_class_arguments(Matrix, as_group=False)
    built.add_argument("--output", type=str, default="compare", help="Folder for the runs and the report.")
    built.add_argument("--title", type=str | None, default=None, help="Of the report.")
    built.add_argument("--jobs", type=int | None, default=None, help="Runs at a time; one per GPU if left out.")
    built.add_argument("--threads", type=int | None, default=None, help="Of each run on the CPU.")
    built.add_argument("--list", action="store_true", help="Only print a command for each run that is missing.")
    built.add_argument("--run", type=str | None, default=None, help="Do this run alone, as a line of --list says.")
    built.add_argument("--report", action="store_true", help="Only write the report of the results that are there.")
    built.add_argument("--dry_run", type=bool, default=False, help="Only list the runs and their commands.")
    return built


def parsed(arguments: list[str]) -> tuple[Matrix, Namespace]:
    """The matrix and the options of the command.

    Args:
        arguments: those after ``compare``. Files after ``-c`` that configure a run, not a matrix, are added to the
            matrix's ``base``.

    Raises:
        UserError: what is wrong with the matrix.
    """
    built = parser()
    arguments, files = _without_files_of_runs(arguments)
    options = built.instantiate_classes(built.parse_args(arguments))
    options.base += files
    return Matrix(**{field.name: options[field.name] for field in fields(Matrix)}), options


def _without_files_of_runs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without the files that ``-c`` names and that configure a run, and these files."""
    kept, files, words = list[str](), list[str](), iter(arguments)
    for word in words:
        flag, inline, value = word.partition("=")
        if flag not in ("-c", "--config"):
            kept.append(word)
            continue
        named = [value] if inline else list(islice(words, 1))
        if named and _configures_a_run(Path(named[0])):
            files += named
        else:
            kept += [flag, *named]
    return kept, files


def _configures_a_run(path: Path) -> bool:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False  # the parser says what is wrong with it
    return isinstance(content, dict) and bool({"data", "model", "trainer"} & content.keys()) and "axes" not in content


def commands(matrix: Matrix, output: Path, arguments: list[str]) -> list[str]:
    """A command for each run that is missing: for a SLURM array, GNU parallel or any other scheduler.

    Args:
        matrix: what to run.
        output: the folder, which all share.
        arguments: of ``biaskd compare --list``.
    """
    words = ["biaskd", "compare", *(word for word in arguments if word != "--list")]
    missing = [each for each in runs_of(matrix) if result_in(each.folder(output)) is None]
    return [shlex.join([*words, "--run", _name(each, output)]) for each in missing]


def _name(each: Run, output: Path) -> str:
    return each.folder(output).relative_to(output / "runs").as_posix()


def _named(matrix: Matrix, output: Path, name: str) -> Run:
    found = next((each for each in runs_of(matrix) if _name(each, output) == name), None)
    if found is None:
        raise UserError(
            f"the matrix has no run {name!r}; if a file that it names was edited, print the commands again by --list"
        )
    return found


def run(arguments: list[str]) -> int:
    """Runs the command.

    Args:
        arguments: those after ``compare``.

    Returns:
        The exit status: 0 if every run is done.

    Raises:
        UserError: what is wrong with the matrix.
    """
    matrix, options = parsed(arguments)
    output = Path(options.output)
    if options.dry_run:
        for each in runs_of(matrix):
            folder = each.folder(output)
            state = "done" if (folder / RESULT).is_file() else "begun" if folder.is_dir() else "missing"
            print(f"{state:8}{each.label}\n        {each.command}")
        return 0
    if options.list:
        for line in commands(matrix, output, arguments):
            print(line)
        return 0
    if options.report:
        require_matplotlib()
        outcome = outcome_so_far(matrix, output)
        write_report(matrix, outcome, output, options.title)
        print(f"{len(outcome.results)} of {len(runs_of(matrix))} runs are in {output / 'report.html'}")
        print(*outcome.verdict, sep="\n")
        return 0
    try:
        if options.run is not None:
            only = _named(matrix, output, options.run)
            outcome = run_matrix(matrix, output, options.jobs, options.threads, only=only)
            return 1 if outcome.failures else 0
        outcome = compare(matrix, output, options.jobs, options.threads, options.title)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
        return 130
    print(f"\n{markdown_table(matrix, outcome.results)}\n\n{output / 'report.html'}")
    for failed, line in outcome.failures.items():
        print(f"failed: {failed.label}: {line}")
    print("", *outcome.verdict, sep="\n")
    return 1 if outcome.failures else 0
