"""Draws the pictures of the README and of the documentation's first page, as SVG for light and dark pages.

python docs/pictures.py                                       # docs/img/strategy.svg
python docs/pictures.py --runs runs/quickstart runs/plain     # also docs/img/quickstart.svg, from two runs:
    biaskd fit --trainer.callbacks+=BiasMonitor
    biaskd fit --trainer.callbacks+=BiasMonitor --model.bias null --trainer.logger.name plain
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_biaskd.bias import cosine, rectify

IMG = Path(__file__).parent / "img"
STYLE = """
  svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
  .card { fill: #ffffff; stroke: #d0d7de; }
  .box { fill: #f6f8fa; stroke: #d0d7de; }
  text { fill: #1f2328; font-size: 14px; }
  .title { font-size: 15px; font-weight: 600; }
  .small { fill: #59636e; font-size: 12.5px; }
  .right { fill: #0072b2; } .wrong { fill: #d55e00; } .other { fill: #afb8c1; }
  .curve { fill: none; stroke-width: 2.5; } .axis { stroke: #818b98; fill: none; } .grid { stroke: #d0d7de; }
  .curve.right { stroke: #0072b2; fill: none; } .curve.wrong { stroke: #d55e00; fill: none; }
  .arrow { stroke: #59636e; stroke-width: 1.8; fill: none; } .head { fill: #59636e; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #15191f; stroke: #3d444d; }
    .box { fill: #212830; stroke: #3d444d; }
    text { fill: #f0f6fc; }
    .small { fill: #b7bfc8; }
    .right { fill: #56b4e9; } .wrong { fill: #ff8f4a; } .other { fill: #656c76; }
    .axis { stroke: #9198a1; } .grid { stroke: #3d444d; }
    .curve.right { stroke: #56b4e9; } .curve.wrong { stroke: #ff8f4a; }
    .arrow { stroke: #b7bfc8; } .head { fill: #b7bfc8; }
  }
"""
CLASSES = ("cat", "dog", "fox", "owl")
RIGHT, WRONG = (0.64, 0.2, 0.1, 0.06), (0.28, 0.55, 0.11, 0.06)  # two outputs of a teacher for images of a cat


def drawing(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    """A whole SVG file: a card with the parts on it."""
    arrow = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0,0 L8,4 L0,8 z"/></marker>'
    )
    body = "\n".join([f'<rect class="card" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10"/>', *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{label}">\n<style>{STYLE}</style>\n<defs>{arrow}</defs>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """One line of text."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{content}</text>'


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points, with a head at its end."""
    path = " L".join(f"{x:g},{y:g}" for x, y in points)
    return f'<path class="arrow" d="M{path}" marker-end="url(#head)"/>'


def bars(x: float, y: float, probs: Sequence[float], top: str) -> str:
    """A teacher's probabilities: 168 wide, 76 high, the largest in a colour."""
    parts = []
    for number, (name, prob) in enumerate(zip(CLASSES, probs, strict=True)):
        left, height = x + 42 * number, 76 * prob / 0.7
        kind = top if prob == max(probs) else "other"
        parts.append(
            f'<rect class="{kind}" x="{left:g}" y="{y + 76 - height:.1f}" width="32" height="{height:.1f}" rx="2"/>'
        )
        parts.append(text(left + 16, y + 92, name, "small", "middle"))
    return "\n".join(parts)


def chart(x: float, y: float, width: float, height: float, curves: dict[str, Sequence[float]]) -> str:
    """Curves of values in [0, 1] by their class, over the width."""
    parts = [f'<path class="grid" d="M{x:g},{y + height * share:g} h{width:g}"/>' for share in (0, 0.25, 0.5, 0.75)]
    parts.append(f'<path class="axis" d="M{x:g},{y:g} v{height:g} h{width:g}"/>')
    for kind, values in curves.items():
        points = " ".join(
            f"{x + width * i / (len(values) - 1):.1f},{y + height * (1 - value):.1f}" for i, value in enumerate(values)
        )
        parts.append(f'<polyline class="curve {kind}" points="{points}"/>')
    return "\n".join(parts)


def strategy() -> str:
    """What happens to right and to wrong outputs, and how much each weighs during training."""
    corrected = rectify(torch.tensor([WRONG]), torch.tensor([0]), "swap")[0].tolist()
    gamma = [cosine(step / 40) for step in range(41)]
    return drawing(
        960,
        370,
        "The teacher's right outputs are kept, its wrong outputs are dropped or corrected toward the label, and the "
        "weight moves from the first to the second during training.",
        [
            text(30, 36, "The teacher's output", "title"),
            text(30, 55, "two images, both labelled cat", "small"),
            bars(30, 84, RIGHT, "right"),
            bars(30, 234, WRONG, "wrong"),
            text(266, 112, "right", "title right", "middle"),
            arrow((216, 124), (318, 124)),
            text(266, 262, "wrong", "title wrong", "middle"),
            arrow((216, 274), (318, 274)),
            text(330, 36, "What the student is taught", "title"),
            bars(330, 84, RIGHT, "right"),
            text(512, 120, "kept", "title"),
            text(512, 138, "as it is", "small"),
            bars(330, 234, corrected, "wrong"),
            text(512, 260, "dropped, or", "title"),
            text(512, 278, "corrected", "title"),
            text(512, 296, "toward the label", "small"),
            text(660, 36, "How much each weighs", "title"),
            text(660, 55, "in the distillation loss, during training", "small"),
            chart(668, 84, 252, 226, {"right": [1 - value for value in gamma], "wrong": gamma}),
            text(668, 77, "right: 1 − γ", "right"),
            text(920, 77, "corrected: γ", "wrong", "end"),
            text(660, 89, "1", "small", "end"),
            text(660, 314, "0", "small", "end"),
            text(668, 332, "start", "small"),
            text(920, 332, "end of training", "small", "end"),
        ],
    )


def column(run: Path, name: str) -> list[float]:
    """A logged number of a run by epoch."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def quickstart(bias: Path, plain: Path) -> str:
    """Where the quickstart's teacher is wrong, and what its student does there with the strategy and without."""
    rates = [column(bias, f"bias/wrong_rate/{digit}")[-1] for digit in range(10)]
    key = "train/on_teacher_wrong"
    with_strategy, without = column(bias, key), column(plain, key)
    parts = [
        text(30, 36, "How often the teacher is wrong", "title"),
        text(30, 55, "by digit, on the augmented training images [%]", "small"),
        text(470, 36, "The student where the teacher is wrong", "title"),
        text(470, 55, "share of these training images that the student gets right, by epoch", "small"),
        chart(500, 80, 430, 220, {"right": without, "wrong": with_strategy}),
    ]
    scale = 190 / max(rates)
    for digit, rate in enumerate(rates):
        left, height = 30 + 39 * digit, scale * rate
        parts.append(f'<rect class="wrong" x="{left}" y="{300 - height:.1f}" width="28" height="{height:.1f}" rx="2"/>')
        parts.append(text(left + 14, 318, str(digit), "small", "middle"))
        parts.append(text(left + 14, 293 - height, f"{100 * rate:.0f}", "small", "middle"))
    for share in (0, 50, 100):
        parts.append(text(494, 304 - 2.2 * share, f"{share} %", "small", "end"))
    parts += [text(500, 320, "1", "small"), text(930, 320, str(len(with_strategy)), "small", "end")]
    parts += [
        '<path class="curve wrong" d="M560,340 h24"/>',
        text(590, 345, "with the strategy (biaskd fit)", "small"),
        '<path class="curve right" d="M800,340 h24"/>',
        text(830, 345, "plain distillation", "small"),
    ]
    return drawing(
        960, 365, "Wrong-rate of the quickstart's teacher by digit, and the student's accuracy there.", parts
    )


def run() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs=2, metavar=("BIAS", "PLAIN"), help="folders with version_0")
    args = parser.parse_args()
    (IMG / "strategy.svg").write_text(strategy(), encoding="utf-8")
    if args.runs:
        (IMG / "quickstart.svg").write_text(quickstart(*(path / "version_0" for path in args.runs)), encoding="utf-8")


if __name__ == "__main__":
    run()
