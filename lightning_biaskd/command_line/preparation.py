"""``biaskd prepare``."""

from __future__ import annotations

from lightning_biaskd.command_line.arguments import BriefParser
from lightning_biaskd.data.prepare import prepare


def prepare_images(arguments: list[str]) -> None:
    """Runs ``biaskd prepare``.

    Args:
        arguments: those after ``prepare``.
    """
    parser = BriefParser(
        prog="biaskd prepare",
        description="Store class folders of images once in the size that training needs, as folders or litdata shards. "
        "An interrupted command goes on where it was.",
    )
    parser.add_function_arguments(prepare, as_group=False, as_positional=True)
    options = parser.parse_args(arguments)
    header = prepare(**vars(options))
    lost = sum(map(len, header.left_out.values()))
    stored = " and ".join(f"{count} {split}" for split, count in header.images.items())
    told = f"; {lost} damaged ones are left out, see prepared.json" if lost else ""
    print(f"{stored} images of {len(header.classes)} classes are in {options.output!r}{told}")
