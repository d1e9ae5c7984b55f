"""What the documents say runs: docstring examples, README, pages and notebooks."""

import ast
import doctest
import importlib
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell
from processes import Started

import lightning_biaskd
from lightning_biaskd.__main__ import main

ROOT = Path(__file__).parents[1]
GENERATED = {ROOT / "docs" / "methods", ROOT / "docs" / "notebooks"}
PAGES = {
    page.relative_to(ROOT).with_suffix("").as_posix(): page.read_text()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if page.parent not in GENERATED
}
MODULES = [
    info.name
    for info in pkgutil.walk_packages(lightning_biaskd.__path__, "lightning_biaskd.")
    if not info.name.endswith("__main__")
]


def blocks(language):
    """Of all pages, with ids that name their place."""
    found = [
        (f"{page}-{number}", block)
        for page, text in PAGES.items()
        for number, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE), 1)
    ]
    return [pytest.param(block, id=name) for name, block in found]


def test_docstring_examples():
    tried = 0
    for name in MODULES:
        module = importlib.import_module(name)
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert not result.failed, name
        tried += result.attempted
    assert tried > 40


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = code.replace("max_epochs=60", "max_epochs=1")
    exec(compile(quick, "block", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_parses(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("block.yaml").write_text(text)
    before = ["compare"] if "axes" in yaml.safe_load(text) else ["fit", "-c", "configs/quickstart.yaml"]
    with pytest.raises(SystemExit) as end:
        main([*before, "-c", "block.yaml", "--print_config"])
    assert end.value.code == 0, capsys.readouterr().err


COMMANDS = {
    (page, line.split(" #")[0].strip()): None
    for page, text in PAGES.items()
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
    if re.search(r"biaskd (?!prepare)[a-z]", line.split(" #")[0])  # which has no configuration to print
}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_parse(page, command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command[command.index("biaskd ") :])[1:]
    with pytest.raises(SystemExit) as end:
        main([words[0], *words[1:], "--print_config"])
    assert end.value.code == 0
    assert ("axes" if words[0] == "compare" else "class_path") in capsys.readouterr().out


def test_there_are_commands():
    assert sum(page == "README" for page, _ in COMMANDS) >= 5


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IN_A_KERNEL = ROOT / "notebooks" / "02_what_bias_looks_like.ipynb"


def run_cells(path):
    """All of a notebook, with short trainings."""
    shell = InteractiveShell.instance()
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            code = re.sub(r"(epochs(?:=| = | )|trainer\()\d+", r"\g<1>2", "".join(cell["source"]))
            shell.run_cell(code).raise_error()


@pytest.mark.parametrize("path", sorted({*NOTEBOOKS} - {IN_A_KERNEL}), ids=lambda path: path.stem)
def test_notebook_executes(path, tmp_path):
    Started(run_cells, path, folder=tmp_path, MPLBACKEND="agg").finished()


def test_a_notebook_executes_in_a_kernel(tmp_path):
    shutil.copy(IN_A_KERNEL, tmp_path)  # it writes beside itself
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "out", IN_A_KERNEL.name]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_small_and_of_no_machine_in_particular(path):
    text = path.read_text()
    assert len(text) < 400_000
    cells = json.loads(text)["cells"]
    assert not [
        source for cell in cells if re.search("^print", source := "".join(cell["source"]), re.M) and not cell["outputs"]
    ]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert outputs
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    for output in outputs:
        said = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        assert not re.search(r"/(home|root|tmp|Users|work)/|site-packages|Warning", said), said


def told():
    """The texts of the package, without the values that they are filled with."""
    texts = []
    for path in Path(lightning_biaskd.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def words_of(message):
    """The runs of at least two words in a message that can be no values."""
    parts = re.split(r"'[^']*'|[^a-z_' ()-]+|\b[A-Z]\w*", message)
    return [run.strip() for run in parts if " " in run.strip()]


def test_the_messages_that_are_explained_are_those_that_are_told():
    page, texts = PAGES["docs/troubleshooting"].split("## Common pitfalls elsewhere")[0], told()
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ") and "Lightning: " not in line]
    runs = [run for cell in cells for message in re.findall(r"`([^`]+)`", cell) for run in words_of(message)]
    assert len(runs) > 60
    parts = {run: (run, run.split(" ", 1)[1], run.rsplit(" ", 1)[0]) for run in runs}  # either end may be a value
    stale = [run for run, forms in parts.items() if not any(form in texts for form in forms)]
    assert not stale
