"""Which file imports which: one way, in the order of the rooms, without a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_biaskd"
ROOMS = [
    "errors",
    "renamed",
    "files",
    "distributed",
    "randomness",
    "networks",
    "models",
    "logits",
    "distiller",
    "features",
    "data",
    "bias",
    "teachers",
    "distillers",
    "metrics",
    "training",
    "plotting",
    "callbacks",
    "audit",
    "export",
    "command_line",
    "compare",
    "__main__",
]
"""From the ground up: a room imports only from itself and from rooms before it."""


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def in_body(tree):
    """Nodes that run on import or on call, without what is there for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from in_body(node)


def imported(name):
    """Files of the package that a file imports anywhere."""
    for node in in_body(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_biaskd"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("lightning_biaskd."))


GRAPH = {name: sorted(set(imported(name)) - {name}) for name in FILES}


def room(name):
    return name.split(".")[1] if "." in name else name


def below(name):
    """All that a file loads, by way of others too."""
    seen, todo = set(), [name]
    while todo:
        for other in GRAPH.get(todo.pop(), []):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def test_every_room_is_known():
    assert {room(name) for name in FILES} - {"lightning_biaskd"} == set(ROOMS)


def test_imports_go_one_way():
    upward = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if "." in name and "." in other and ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]
    assert not upward


def test_there_is_no_circle_between_files():
    assert not [name for name in GRAPH if name in below(name)]


@pytest.mark.parametrize("package", ["data", "models", "networks"])
def test_images_and_networks_know_no_method(package):
    files = [name for name in FILES if room(name) == package]
    assert not {other for name in files for other in below(name) if room(other) in ("distillers", "distiller", "bias")}


def test_few_modules_lie_loose():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_files_are_short():
    assert not [name for name, path in FILES.items() if len(path.read_text().splitlines()) >= 300]


@pytest.mark.parametrize(
    ("module", "absent"),
    [("lightning_biaskd.data", "lightning_biaskd.distillers"), ("lightning_biaskd.bias", "lightning.pytorch")],
)
def test_a_part_loads_no_other(module, absent):
    program = f"import sys, {module}; assert {module!r} in sys.modules; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, check=False).returncode == 0
