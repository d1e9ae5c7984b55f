"""Sphinx builds the documentation by this: ``sphinx-build -W --keep-going -q docs site``."""

from __future__ import annotations

import html
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging as sphinx_logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cards  # noqa: E402

import lightning_biaskd  # noqa: E402

project = "lightning_biaskd"
author = "The lightning_biaskd authors"
version = release = lightning_biaskd.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]

html_theme = "furo"
html_title = f"{project} {version}"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]

html_math_renderer = "mathml"  # every browser draws it without a script, so the site works offline
myst_update_mathjax = False
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown as they were last executed; the tests execute them

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_inherit_docstrings = False  # PyTorch's and Lightning's are in their own documentation
autodoc_preserve_defaults = True  # as they are written, not as they print
napoleon_custom_sections = [("Shape", "returns_style")]
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

# A page of the guide that is yet to be written is no error.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: getattr(record, "subtype", None) != "empty_glob"
)


def setup(app: Any) -> None:
    """Makes the pages that are made of others."""
    cards.write(HERE / "methods")
    shutil.rmtree(HERE / "notebooks", ignore_errors=True)
    (HERE / "notebooks").mkdir()
    for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
        shutil.copy2(notebook, HERE / "notebooks")
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("source-read", link_pages)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("missing-reference", passed_on)


def inline_formula(translator: Any, node: Any) -> None:
    """A formula within a line."""
    translator.body.append(mathml(node.astext(), as_block=False))
    raise SkipNode


def block_formula(translator: Any, node: Any) -> None:
    """A formula in a line of its own."""
    translator.body.append(f'<div class="math">{mathml(node.astext(), as_block=True)}</div>')
    raise SkipNode


DIALECT = {
    r"\\[bB]igg?l?(?=[(\[])": r"\\left",
    r"\\[bB]igg?r?(?=[)\]])": r"\\right",
    r"\\([bB]igg?[lr]?|textstyle)(?![a-zA-Z])": "",
    r"\\dots(?![a-zA-Z])": r"\\ldots",
    r"(\\[dt]?frac)\s*(\d)\s*(\w)": r"\1{\2}{\3}",
    r"(\\[dt]?frac)\s*(\w)(?=[{\\])": r"\1{\2}",
}
"""LaTeX that docutils reads otherwise than TeX does, and what it reads alike."""


def mathml(tex: str, as_block: bool) -> str:
    """A formula as MathML; its delimiters grow by themselves there. What can't be read is a warning."""
    code = tex
    for written, understood in DIALECT.items():
        code = re.sub(written, understood, code)
    if as_block and "\\\\" in code and "\\begin{" not in code:
        code = f"\\begin{{align*}}{code}\\end{{align*}}"
    try:
        return str(tex2mathml(code, as_block=as_block))
    except MathError as error:
        sphinx_logging.getLogger(__name__).warning("formula %r: %s", tex, error)
        return f"<code>{html.escape(tex)}</code>"


def link_pages(_: Any, page: str, source: list[str]) -> None:
    """Pages link as on GitHub: here to the pages of notebooks and methods, and to files as downloads."""
    source[0] = re.sub(r"\]\((\.\./)+notebooks/", "](/notebooks/", source[0])
    source[0] = re.sub(r"\]\((\.\./)+README\.md", "](/index.md", source[0])
    source[0] = re.sub(r"\]\((?=(\.\./)+benchmarks/)", "](path:", source[0])
    if page == "methods":
        names = "|".join(cards.methods())
        linked = re.sub(rf"^\| `({names})` ", r"| [`\1`](methods/\1.md) ", source[0], flags=re.M)
        source[0] = linked + "\n```{toctree}\n:hidden:\n:glob:\n\nmethods/*\n```\n"


def skip_fields(_: Any, what: str, name: str, value: object, skip: bool, options: Any) -> bool | None:
    """The fields of a named tuple are documented on its class."""
    return True if (value.__doc__ or "").startswith("Alias for field number") else None


def passed_on(app: Any, env: Any, node: Any, text: Any) -> Any:
    """What ``lightning_biaskd`` passes on is documented in the subpackage that it is from."""
    package, _, name = node["reftarget"].rpartition(".")
    if package != "lightning_biaskd" or name not in lightning_biaskd.__all__:
        return None
    package, room, *_ = getattr(lightning_biaskd, name).__module__.split(".")
    origin = f"{package}.{room}.{name}"
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, node["reftype"], origin, node, text)
