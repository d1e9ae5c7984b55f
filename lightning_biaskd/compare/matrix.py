"""What is to be compared: axes, the rows that they span, and the command of every run."""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_biaskd.command_line.shipped import shipped
from lightning_biaskd.compare.contents import content_of, named_in
from lightning_biaskd.errors import UserError

Choice = str | list[str] | dict[str, Any] | None
"""What a name on an axis stands for: a YAML file, several, or flags (``config`` among them names files)."""


@dataclass
class Block:
    """Rows out of the product of all axes, and what is particular to them.

    Args:
        pick: by axis, a name or several; an axis left out means all its names.
        seeds: of these rows; ``None`` for the matrix's own, or those that an earlier block gave them.
        flags: that these rows get in addition, as ``flags`` of the matrix.
        skip: leaves these rows out, if an earlier block put them in.
    """

    pick: dict[str, str | list[str]] = field(default_factory=dict)
    seeds: list[int] | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    skip: bool = False


@dataclass
class Matrix:
    """A matrix of trainings. Each is an ordinary ``biaskd fit``: YAML files, then flags, then a seed.

    Example:
        .. code-block:: yaml

            base: [configs/data/fashion_mnist.yaml, configs/pair/fashion_mnist_resnet14_resnet8.yaml]
            flags: {trainer.max_epochs: 15, model.lr_scheduler.T_max: 15}
            axes:
              method: {kd: configs/method/kd.yaml, dkd: configs/method/dkd.yaml, alone: {model.kd_weight: 0}}
              bias: {none: configs/bias/none.yaml, swap: configs/bias/swap.yaml}
              data: {all: null, small: {data.train_size: 6000}}
            seeds: [0, 1, 2]
            rows:
              - pick: {method: [kd, dkd]}                      # with every bias and all data: eight rows
              - pick: {method: kd, data: all}                  # two of these again, with more seeds
                seeds: [0, 1, 2, 3, 4]
              - pick: {method: dkd, bias: swap}                # and two with another weight
                flags: {model.kd_weight: 0.5}
              - pick: {method: alone, bias: none}              # in addition to the product
            reference: {bias: none}                            # each row against the same without the strategy
            baselines: {alone: {method: alone, bias: none}, plain: {method: kd, bias: none}}    # for the verdict

    Args:
        axes: by axis, its names and what each stands for: a YAML file, a list of files, flags, or null for nothing.
        base: YAML files of every run, before those of the axes.
        flags: of every run, as on the command line without the dashes; they come after all files. Later ones win:
            those of the axes, in their order, then those of the rows.
        seeds: of every row, unless it says otherwise.
        rows: which rows there are, block by block; all combinations if left out. A row that several blocks pick is one
            row, with the flags of all.
        reference: names by axis: the row that differences are taken to. On the other axes it is the same as the row
            that is compared, so ``{bias: none}`` is each method's plain form and ``{method: kd, bias: none}`` is plain
            KD.
        baselines: rows that the verdict compares the best row to, by name, each given as ``reference`` is:
            ``{alone: {method: alone, bias: none}, plain: {method: kd, bias: none}}``. There is one verdict for each
            name on an axis that no baseline names, such as ``data`` here. Left out, it is the reference row alone.
        lines: the axis whose names are the lines of a panel of curves, while the others' names are the panels; if left
            out, the last of ``reference``, or the last of all.
    """

    axes: dict[str, dict[str, Choice]]
    base: list[str] = field(default_factory=list)
    flags: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    rows: list[Block] = field(default_factory=list)
    reference: dict[str, str] = field(default_factory=dict)
    baselines: dict[str, dict[str, str]] = field(default_factory=dict)
    lines: str | None = None

    def __post_init__(self) -> None:
        if not self.axes or not all(self.axes.values()):
            raise UserError("axes: give at least one axis, and each at least one name")
        self._check_names("reference", self.reference)
        for name, names in self.baselines.items():
            self._check_names(f"baselines.{name}", names)
        for number, block in enumerate(self.rows):
            self._check_names(f"rows[{number}].pick", block.pick)
        if self.lines is None:
            self.lines = next(reversed(self.reference or self.axes))
        if self.lines not in self.axes:
            raise UserError(f"lines: there is no axis {self.lines!r}; there are {', '.join(self.axes)}")
        if not self.expanded():
            raise UserError("rows: all are skipped")
        if not all(row.seeds for row in self.expanded()):
            raise UserError("seeds: every row needs at least one")
        folders = [row.folder for row in self.expanded()]
        if len(set(folders)) < len(folders):
            raise UserError("axes: two names differ in nothing but signs that no folder can have; rename one")

    def _check_names(self, where: str, names: Mapping[str, str | list[str]]) -> None:
        for axis, chosen in names.items():
            if axis not in self.axes:
                raise UserError(f"{where}: there is no axis {axis!r}; there are {', '.join(self.axes)}")
            for name in _listed(chosen):
                if name not in self.axes[axis]:
                    raise UserError(f"{where}: {axis} has no {name!r}; it has {', '.join(self.axes[axis])}")

    def expanded(self) -> list[Row]:
        """The rows, in the order in which blocks name them."""
        rows: dict[tuple[str, ...], Row] = {}
        for block in self.rows or [Block()]:
            picked = [_listed(block.pick.get(axis, list(names))) for axis, names in self.axes.items()]
            for names in itertools.product(*picked):
                if block.skip:
                    rows.pop(names, None)
                    continue
                row = rows.get(names) or self._row(names)
                files, flags = _parts(block.flags)
                seeds = row.seeds if block.seeds is None else tuple(dict.fromkeys(block.seeds))
                rows[names] = Row(row.names, (*row.files, *files), {**row.flags, **flags}, seeds)
        return list(rows.values())

    def _row(self, names: tuple[str, ...]) -> Row:
        cell = dict(zip(self.axes, names, strict=True))
        parts = [(self.base, {}), _parts(self.flags), *(_parts(self.axes[axis][name]) for axis, name in cell.items())]
        files = [file for files, _ in parts for file in files]
        flags = {key: value for _, flags in parts for key, value in flags.items()}
        return Row(cell, tuple(files), flags, tuple(dict.fromkeys(self.seeds)))

    def reference_of(self, row: Row) -> Row | None:
        """The row that another is compared to; ``None`` if there is none, or it is that row."""
        found = self.row_like(row, self.reference)
        return None if found is None or found.names == row.names else found

    def row_like(self, row: Row, names: Mapping[str, str]) -> Row | None:
        """The row that has other names on some axes and is the same on all others; ``None`` if there is none."""
        wanted = {**row.names, **names}
        return next((other for other in self.expanded() if other.names == wanted), None)


@dataclass(frozen=True)
class Row:
    """One cell of the matrix: the same training with several seeds.

    Attributes:
        names: by axis.
        files: YAML files, in order.
        flags: by name.
        seeds: of its runs.
    """

    names: dict[str, str] = field(hash=False)
    files: tuple[str, ...]
    flags: dict[str, Any] = field(hash=False)
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        """For people."""
        return ", ".join(self.names.values())

    @property
    def folder(self) -> str:
        """For the file system."""
        return folder_of(self.names)

    def runs(self) -> Iterator[Run]:
        """One run for each seed."""
        for seed in self.seeds:
            yield Run(self, seed)


@dataclass(frozen=True)
class Run:
    """One training."""

    row: Row
    seed: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.row.label}, seed {self.seed}"

    def words(self) -> list[str]:
        """The arguments of ``biaskd fit``."""
        files = [word for file in self.row.files for word in ("-c", file)]
        flags = {**self.row.flags, "seed_everything": self.seed}
        return [*files, *(f"--{name}={_spelled(value)}" for name, value in flags.items())]

    @property
    def command(self) -> str:
        """What does the same by hand."""
        return shlex.join(["biaskd", "fit", *self.words()])

    @property
    def fingerprint(self) -> str:
        """Of all that determines the result, that is the flags and the contents of the files and of what these name."""
        digest = hashlib.sha256(json.dumps([self.row.flags, self.seed], sort_keys=True, default=str).encode())
        for file in self.row.files:
            digest.update(content_of(shipped(file)))
        for value in self.row.flags.values():
            digest.update(named_in(value))
        return digest.hexdigest()[:10]

    def folder(self, output: Path, fingerprint: str | None = None) -> Path:
        """Where its result lies. Another configuration has another folder, so nothing stale is ever taken for done.

        Args:
            output: folder of the comparison.
            fingerprint: that of a result; ``None`` for that of the files as they are now.
        """
        return output / "runs" / self.row.folder / f"seed{self.seed}-{fingerprint or self.fingerprint}"


def folder_of(names: Mapping[str, str]) -> str:
    """A name of a file or folder that stands for names by axis."""
    return ",".join(f"{axis}={name}" for axis, name in names.items()).translate(_UNSAFE)


_UNSAFE = {ord(sign): "-" for sign in '/\\:*?"<>| '}


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def _parts(choice: Choice) -> tuple[list[str], dict[str, Any]]:
    """The files and the flags that a choice stands for."""
    if not isinstance(choice, dict):
        return ([] if choice is None else _listed(choice)), {}
    flags = dict(choice)
    return _listed(flags.pop("config", [])), flags


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
