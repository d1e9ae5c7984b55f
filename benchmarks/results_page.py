"""Fills the tables and figures of README.md and docs/ with what the files in benchmarks/results say.

    python benchmarks/results_page.py                            # from the CSV and JSON files in benchmarks/results
    python benchmarks/results_page.py --from runs/evidence       # first copies new CSV files and curves there

A table or figure stands between ``<!-- results:NAME:begin -->`` and ``<!-- results:NAME:end -->``. Everything else is
written by hand.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import accuracies
import around_methods
import photographs
import scales
import timings
from accuracies import MATRICES, RESULTS

ROOT = Path(__file__).parents[1]
BLOCKS: dict[str, Callable[[], str]] = {
    **accuracies.TABLES,
    **accuracies.FIGURES,
    **around_methods.TABLES,
    **photographs.TABLES,
    **photographs.FIGURES,
    **timings.TABLES,
    **timings.FIGURES,
    **scales.TABLES,
    **scales.FIGURES,
}
_MARKED = re.compile(r"(<!-- results:(.*?):begin -->)(\n?).*?(<!-- results:\2:end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The documents that have tables or figures of results."""
    written = [ROOT / "README.md", *(ROOT / "benchmarks").glob("*.md"), *(ROOT / "docs").glob("**/*.md")]
    return sorted(page for page in written if _MARKED.search(page.read_text(encoding="utf-8")))


def filled(text: str) -> str:
    """A page with its tables and figures as the files have them."""
    return _MARKED.sub(lambda found: f"{found[1]}{found[3]}{BLOCKS[found[2]]()}{found[3]}{found[4]}", text)


def run() -> None:
    """Copies new results, and fills the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path)
    args = parser.parse_args()
    if args.source:
        for matrix in (name for name in MATRICES if (args.source / name / "results.csv").is_file()):
            shutil.copy(args.source / matrix / "results.csv", RESULTS / f"evidence_{matrix}.csv")
            for picture in (args.source / matrix).glob("curves.svg"):
                shutil.copy(picture, ROOT / "docs/img" / f"evidence_{matrix}.svg")
    for page in pages():
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    run()
