"""What the documents say runs: docstring examples, the README, the notebooks."""

import doctest
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_biaskd
from lightning_biaskd.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MODULES = [
    info.name
    for info in pkgutil.walk_packages(lightning_biaskd.__path__, "lightning_biaskd.")
    if not info.name.endswith("__main__")
]


def test_docstring_examples():
    tried = 0
    for name in MODULES:
        module = importlib.import_module(name)
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert not result.failed, name
        tried += result.attempted
    assert tried > 40


@pytest.mark.parametrize("number", range(README.count("```python")))
def test_readme_python(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[number]
    quick = code.replace("max_epochs=60", "max_epochs=1").replace("(3, (16,)))], 60", "(3, (16,)))], 2")
    exec(compile(quick, f"README block {number}", "exec"), {"__name__": "readme"})


COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if "biaskd " in line.split("#")[0]
]


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_parse(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command[command.index("biaskd ") :])[1:]
    with pytest.raises(SystemExit) as end:
        main([words[0], *words[1:], "--print_config"])
    assert end.value.code == 0
    assert ("axes" if words[0] == "compare" else "class_path") in capsys.readouterr().out


def test_there_are_readme_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_executes(path, tmp_path):
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(tmp_path)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # tiny networks lose by more
    run = subprocess.run([*command, str(path)], capture_output=True, text=True, cwd=tmp_path, env=one_thread)
    assert run.returncode == 0, run.stderr[-3000:]
