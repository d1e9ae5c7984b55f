"""The teacher's answers on disk: computed once for each image and view, for all methods, modes and runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_biaskd.data.batch import Batch
from lightning_biaskd.data.in_memory import InMemoryDataModule
from lightning_biaskd.distributed.ranks import rank, world_size
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.teachers.frozen import FrozenTeacher

_VERSION = 2


class TeacherCache:
    """The logits of a teacher for each training image and view, in a folder.

    They are filled in as training asks for them, or all at once by ``biaskd cache``. Only logits are stored, not what
    is made of them, so one cache serves every method and rectification; methods that read features can't use it. The
    folder also holds what it was made of: another teacher, precision, other images or another augmentation are refused.
    The code of networks and data modules of your own goes by its name alone. Processes on one machine share the folder,
    and a killed run leaves it in order. Validation images are stored as they are, the test set isn't.

    With all views of CIFAR's augmentation there are 162 per image, 1.6 GB in half precision; ``views=16`` of the data
    module draws from 16 fixed ones, 162 MB.

    Args:
        path: the folder; it is made, or gone on with.
        dtype: ``"float16"``, whose error is at most 2⁻¹¹ of a logit, or ``"float32"``.
        topk: store the largest logits only, and one for all other classes that leaves their sum of probabilities as it
            is; ``None`` for all. For many classes.

    Raises:
        UserError: the folder holds something else or is damaged, its disk has no room, ``topk`` is below 1, or logits
            to be stored aren't finite.
    """

    def __init__(self, path: str, dtype: Literal["float16", "float32"] = "float16", topk: int | None = None) -> None:
        if topk is not None and topk < 1:
            raise UserError(f"topk={topk} stores no logit of any class: give 1 at least, or null for all")
        self.path = Path(path)
        self.dtype = dtype
        self.topk = topk
        self._logits: Tensor | None = None
        self._classes: Tensor | None = None
        self._filled: Tensor = torch.zeros(0, dtype=torch.uint8)
        self._resident: tuple[Tensor, Tensor | None] | None = None
        self._slots = 0

    def open(self, teacher: FrozenTeacher, data: Any, num_classes: int | None) -> None:
        """Makes the folder, or verifies that it belongs to this teacher and these data.

        Args:
            teacher: that answers.
            data: the data module that hands out its images; its Trainer gives the precision of a teacher without one.
            num_classes: C, the number of classes.

        Raises:
            UserError: see the class; or views that can't be counted.
        """
        countable = isinstance(data, InMemoryDataModule) and data.view_count is not None
        if not countable or data.num_samples is None or num_classes is None:
            raise UserError(
                "a cache of the teacher needs a data module whose views can be counted: data in memory without "
                "strong_view, and with views=16 or so where cutout, color_jitter or an augmentation of your own are on"
            )
        self._slots = data.view_count + 1  # and the image as it is
        rows = data.num_samples * self._slots
        stored = num_classes if self.topk is None else min(self.topk, num_classes) + 1
        index = "int16" if num_classes < 1 << 15 else "int32"
        bytes_per_row = stored * np.dtype(self.dtype).itemsize
        bytes_per_row += 0 if self.topk is None else (stored - 1) * np.dtype(index).itemsize
        header = {
            "version": _VERSION,
            "teacher": teacher.fingerprint(),
            "precision": teacher.precision or ("32-true" if data.trainer is None else data.trainer.precision),
            "data": data.fingerprint(),
            "rows": rows,
            "classes": num_classes,
            "dtype": self.dtype,
            "topk": self.topk,
        }
        self._check(header, rows * (bytes_per_row + 1))
        self._logits = self._map("logits.bin", self.dtype, rows, stored)
        self._classes = None if self.topk is None else self._map("classes.bin", index, rows, stored - 1)
        self._filled = self._map("filled.bin", "uint8", rows, 1).view(-1)
        self.num_classes = num_classes

    def _check(self, header: dict[str, Any], size: int) -> None:
        place = self.path / "header.json"
        if place.is_file():
            try:
                found = dict(json.loads(place.read_text()))
            except (ValueError, TypeError):
                raise UserError(f"'{place}' is damaged: delete its folder, or name another") from None
            other = [name for name, value in header.items() if found.get(name) != value]
            if other:
                raise UserError(
                    f"the teacher's cache in '{self.path}' was made of another "
                    + ", ".join(f"{name} ({found.get(name)}, not {header[name]})" for name in other)
                    + ": name another folder, or delete it"
                )
            return
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        rank_zero_info(f"the teacher's answers will take up to {size / 1e6:,.0f} MB in '{self.path}'")
        if size > free:
            raise UserError(
                f"the teacher's cache needs {size / 1e6:,.0f} MB and '{existing}' has {free / 1e6:,.0f} MB free: "
                "choose another folder, fewer views, or topk"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        draft = place.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(header, indent=1))
        try:
            os.link(draft, place)  # unlike a rename, it fails if another process was first
        except FileExistsError:
            self._check(header, size)
        except OSError:  # a disk without links
            draft.replace(place)
        finally:
            draft.unlink(missing_ok=True)

    def _map(self, name: str, dtype: str, rows: int, columns: int) -> Tensor:
        """A file as a tensor (rows, columns); it is made at its full size, of which nothing is on the disk yet."""
        path = self.path / name
        size = rows * columns * np.dtype(dtype).itemsize
        with path.open("ab") as file:
            if file.tell() < size:
                file.truncate(size)
        return torch.from_numpy(np.memmap(path, dtype, "r+", shape=(rows, columns)))

    def answer(self, batch: Batch, ask: Callable[[Tensor], Outputs]) -> Outputs:
        """The teacher's outputs for a batch: from the cache, or asked for and kept if any of them is missing.

        Args:
            batch: with its images' numbers and views.
            ask: the teacher, from images to outputs.
        """
        assert batch.view is not None
        slot = batch.index * self._slots + batch.view
        if self._resident is not None:
            return Outputs(self._read(*self._resident, slot))
        here = slot.cpu()
        if not bool(self._filled[here].all()):
            self._write(here, ask(batch.image).logits)
        assert self._logits is not None  # what is kept is what is answered, the first time too
        return Outputs(self._read(self._logits, self._classes, here).to(batch.image.device))

    def keep_on(self, device: torch.device, data: InMemoryDataModule) -> None:
        """Copies a cache in which nothing is missing to a GPU, if a quarter of its free memory will do."""
        assert self._logits is not None
        parts = self._logits.nbytes + (0 if self._classes is None else self._classes.nbytes)
        fits = device.type == "cuda" and parts <= torch.cuda.mem_get_info(device)[0] / 4
        if fits and self._resident is None and not self.missing(data).numel():
            self._resident = (
                self._logits.to(device),
                None if self._classes is None else self._classes.to(device),
            )

    def missing(self, data: InMemoryDataModule) -> Tensor:
        """Slots that training and validation will ask for and that aren't filled."""
        wanted = torch.zeros(len(self._filled) // self._slots, self._slots, dtype=torch.bool)
        for numbers, views in data.numbers_and_views():
            wanted[numbers[:, None], views] = True
        return (wanted.view(-1) & (self._filled == 0)).nonzero().view(-1)

    def fill(
        self,
        ask: Callable[[Tensor], Outputs],
        data: InMemoryDataModule,
        device: torch.device,
        batch_size: int = 512,
    ) -> Iterator[tuple[int, int]]:
        """Fills in what is missing, this process its share of it.

        Args:
            ask: the teacher, from images to outputs.
            data: as of :meth:`open`.
            device: where the teacher is.
            batch_size: how many images it is asked for at once.

        Yields:
            How many answers are in, and of how many, after each batch.
        """
        slots = self.missing(data)
        # shared by the images' numbers, as what is missing shrinks while other processes fill
        slots = slots[slots // self._slots % world_size() == rank()]
        for start in range(0, len(slots), batch_size):
            some = slots[start : start + batch_size]
            sample, view = (some // self._slots).to(device), (some % self._slots).to(device)
            image = data.numbered_images(sample, view)
            self._write(some, ask(image).logits)
            yield start + len(some), len(slots)

    def _read(self, logits: Tensor, classes: Tensor | None, slot: Tensor) -> Tensor:
        stored = logits.index_select(0, slot).float()
        if classes is None:
            return stored
        rest = stored[:, -1:].expand(-1, self.num_classes)
        return rest.scatter(1, classes.index_select(0, slot).long(), stored[:, :-1])

    def _write(self, slot: Tensor, logits: Tensor) -> None:
        assert self._logits is not None
        logits = logits.detach().float()
        if not bool(logits.isfinite().all()):
            raise UserError(
                "the teacher's logits hold NaN or infinity, which its cache doesn't keep: check its weights, its "
                "precision and the normalisation of its input"
            )
        if self._classes is not None:
            values, classes = logits.topk(self._classes.shape[1], dim=1)
            others = logits.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
            left = max(self.num_classes - classes.shape[1], 1)
            logits = torch.cat([values, others - np.log(left)], dim=1)
            self._classes[slot] = classes.to("cpu", self._classes.dtype)
        limit = torch.finfo(self._logits.dtype).max
        self._logits[slot] = logits.clamp(-limit, limit).to("cpu", self._logits.dtype)
        self._filled[slot] = 1  # last, so that a process killed in between leaves nothing half written behind
