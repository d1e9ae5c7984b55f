"""Reads the package's docstrings, Google style with Sphinx's roles and directives, as the Markdown of this site."""

from __future__ import annotations

import re
from textwrap import dedent, indent
from typing import Any

import griffe

_DIRECTIVE = re.compile(r"^(?P<indent> *)\.\. (?P<name>[\w-]+):: ?(?P<rest>.*)\n(?P<body>(?:(?P=indent) +.*\n|[ ]*\n)*)", re.M)
_TABLE = re.compile(r"^(?P<indent> *)(?P<rule>=+(?: +=+)+)\n(?P<head>.*)\n.*=\n(?P<rows>(?:.*\n)*?) *(?P=rule)$", re.M)
_ROLE = re.compile(r":(?P<role>class|func|meth|attr):`(?P<short>~?)(?P<target>[\w.]+)`")


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = markdown(obj.docstring.value, obj)


def markdown(text: str, obj: griffe.Object) -> str:
    """A docstring in Markdown; ``obj`` is where the names in it are looked up."""
    text = _DIRECTIVE.sub(_directive, text + "\n").rstrip("\n")
    text = _TABLE.sub(_table, text)
    text = re.sub(r":math:`([^`]+)`", lambda found: f"${' '.join(found[1].split())}$", text)
    text = re.sub(r"(?:\\ )?:sub:`([^`]+)`", r"<sub>\1</sub>", text)
    text = _ROLE.sub(lambda found: _link(found["target"], bool(found["short"]), obj), text)
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.M)
    return re.sub(r"^( *)Shape:\n +(.*)$", r"\1**Shape:** \2", text, flags=re.M)


def _directive(found: re.Match[str]) -> str:
    body = dedent(found["body"]).strip("\n")
    if found["name"] == "math":
        block = "$$\n" + "\n".join(line for line in (found["rest"], body) if line) + "\n$$"
    elif found["name"] == "code-block":
        block = f"```{found['rest']}\n{body}\n```"
    else:
        raise ValueError(f"docstrings know no directive {found['name']!r}: teach it to docs/extensions/docstrings.py")
    return "\n" + indent(block, found["indent"]) + "\n\n"


def _table(found: re.Match[str]) -> str:
    spans = [match.span() for match in re.finditer("=+", found["rule"])]
    left = len(found["indent"])
    spans = [(start + left, None if end == spans[-1][1] else end + left) for start, end in spans]

    def cells(line: str) -> list[str]:
        return [line[start:end].strip() for start, end in spans]

    rows: list[list[str]] = []
    for line in found["rows"].splitlines():
        if cells(line)[0]:
            rows.append(cells(line))
        else:  # a cell that goes on
            rows[-1] = [f"{above} {below}".strip() for above, below in zip(rows[-1], cells(line), strict=True)]
    lines = [cells(found["head"]), ["---"] * len(spans), *rows]
    return "\n".join(f"{found['indent']}| {' | '.join(row)} |" for row in lines)


def _link(target: str, short: bool, obj: griffe.Object) -> str:
    name = target.rpartition(".")[2] if short else target
    if "." not in target or not target.startswith(obj.path.partition(".")[0]):
        first, _, rest = target.partition(".")
        try:
            target = ".".join([obj.resolve(first), *([rest] if rest else [])])
        except griffe.NameResolutionError:
            return f"`{name}`"
    return f"[`{name}`][{target}]"
