"""What can be wrong with a configuration file before its content is read."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lightning_biaskd.command_line.complaints import fail
from lightning_biaskd.command_line.listing import names
from lightning_biaskd.command_line.shipped import config_values


def check_configs(arguments: list[str]) -> None:
    """Refuses a configuration file that is missing, empty, unreadable or sets a key twice, in one line."""
    for value in config_values(arguments):
        if problem := _problem(value):
            fail(f"{problem} (-c {value})", status=2)


def _problem(value: str) -> str | None:
    if "{" in value or "\n" in value:
        return None  # YAML on the command line
    path = Path(value)
    if path.is_dir():
        return "a folder is given as a configuration: name a YAML file in it"
    if not path.is_file():
        known = names()["configs"]
        near = get_close_matches(value, known, 3, 0.75) or get_close_matches(value, [Path(k).name for k in known], 1)
        hint = f"did you mean {', '.join(near)}?" if near else "`biaskd list configs` prints the shipped ones"
        return f"there is no configuration file of this name: {hint}"
    try:
        node = yaml.compose(path.read_bytes().decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        return f"the configuration is not UTF-8 text at byte {error.start}: save it as UTF-8"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        tab = mark is not None and mark.buffer is not None and mark.buffer[mark.pointer : mark.pointer + 1] == "\t"
        where = f" in line {mark.line + 1}" if mark is not None else ""
        what = "a tab: indent with spaces" if tab else str(getattr(error, "problem", error))
        return f"the configuration is not valid YAML{where}: {what}"
    if node is None:
        return "the configuration is empty: leave it out, or write into it what it should set"
    if not isinstance(node, yaml.MappingNode):
        return "the configuration must be keys and values, such as `trainer: {max_epochs: 3}`"
    return _twice(node, set())


def _twice(node: Any, seen: set[int]) -> str | None:
    if id(node) in seen:  # an alias
        return None
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in lines:
                    both = f"lines {lines[key.value]} and {key.start_mark.line + 1}"
                    return f"the configuration sets {key.value!r} twice, in {both}: keep one of them"
                lines[key.value] = key.start_mark.line + 1
            if problem := _twice(value, seen):
                return problem
    elif isinstance(node, yaml.SequenceNode):
        return next(filter(None, (_twice(item, seen) for item in node.value)), None)
    return None
