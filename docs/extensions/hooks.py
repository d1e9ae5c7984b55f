"""What mkdocs doesn't do by itself: equations as MathML, the methods' cards, and the notebooks as pages."""

from __future__ import annotations

import ast
import base64
import html
import json
import logging
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LOG = logging.getLogger("mkdocs.hooks.site")  # what it warns of ends a strict build
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)
_LEFT_OVER = re.compile(r":(?:class|func|meth|attr|math|sub):`|\.\. [\w-]+::|class=\"arithmatex\"|\$\$")


def on_files(files: Files, config: Any) -> Files:
    for path, content in {**cards(), **notebooks()}.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri != "methods.md":
        return markdown
    link = r"\1 [`\2`](methods/\2.md)"
    return re.sub(r"^(\||-) `(\w+)`(?=:| \| [^|]+ \| [^|]+ \| [^|]+ \|)", lambda m: m.expand(link).replace(f"{m[2]}.md", f"{m[2].lower()}.md"), markdown, flags=re.M)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    content = _INLINE.sub(lambda found: _mathml(found[1], "inline"), content)
    content = _BLOCK.sub(lambda found: _mathml(found[1], "block"), content)
    if found := _LEFT_OVER.search(re.sub(r"<(pre|code)\b.*?</\1>", "", content, flags=re.S)):
        LOG.warning(f"{page.file.src_uri}: {found[0]!r} was not understood")
    return content


def _mathml(latex: str, display: str) -> str:
    return convert(html.unescape(latex).strip(), display=display)


def cards() -> dict[str, str]:
    """A page for each method: when to use it, its row of ``methods.md``, its docstrings, and how to cite it."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    bibliography = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
    when = dict(re.findall(r"^- `(\w+)`: ((?:.+\n)(?:  .+\n)*)", page, re.M))
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line[:1] == "|"]
    head = next(row for row in cells if row[0] == "method")[1:]
    rows = {row[0].strip("`| "): row[1:] for row in cells if len(row) == len(head) + 1 and row[0].startswith("`")}
    made = {}
    for name, members in methods().items():
        facts = [f"| {title} | {fact} |" for title, fact in zip(head, rows[name], strict=True)]
        entry = re.search(rf"^@\w+{{{name},\n.*?^}}\n", bibliography, re.M | re.S)
        cite = f"## Cite\n\n```bibtex\n{entry[0]}```\n" if entry else ""
        lines = [f"# {name}\n", f"**When to use it.** {when.get(name)}", "| | |", "|---|---|", *facts, ""]
        lines += [f"::: lightning_biaskd.distillers.{member}\n" for member in members]
        made[f"methods/{name.lower()}.md"] = "\n".join([*lines, cite])
    return made


def methods() -> dict[str, list[str]]:
    """Every exported method with what is exported beside it, such as its loss as a function."""
    found: dict[str, list[str]] = {}
    tree = ast.parse((ROOT / "lightning_biaskd" / "distillers" / "__init__.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        if not isinstance(statement, ast.ImportFrom) or str(statement.module).endswith(".base"):
            continue
        names = [alias.name for alias in statement.names]
        classes = [name for name in names if not name.islower()]
        for own in classes:
            others = [name for name in names if name.islower()]
            if len(classes) > 1:
                others = [name for name in others if name.replace("_", "").startswith(own.lower())]
            found[own] = [own, *others]
    return found


def notebooks() -> dict[str, str | bytes]:
    """A page for each notebook, as it was last executed, and its pictures."""
    made: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        parts = []
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            source = "".join(cell["source"])
            parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
            for place, output in enumerate(cell.get("outputs", [])):
                data = output.get("data", {})
                if "image/png" in data:
                    picture = f"{path.stem}_{number}_{place}.png"
                    made[f"notebooks/{picture}"] = base64.b64decode(data["image/png"])
                    parts.append(f"![]({picture})")
                else:
                    text = "".join(output.get("text", data.get("text/plain", "")))
                    parts.append(f"```text\n{text.rstrip()}\n```")
        made[f"notebooks/{path.stem}.md"] = "\n\n".join(parts) + "\n"
    return made
