"""An opened cache: reads the teacher's outputs, computes and stores those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from lightning_biaskd.data.batch import Batch
from lightning_biaskd.data.numbered import NumberedViews
from lightning_biaskd.distributed.ranks import rank, world_size
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.teachers.encoding import Encoding
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.teachers.rows import Rows

_COMPARED = 16
_TOLERANCE = 0.1  # of the range of a row's logits; kernels, batch sizes and half precision move them by less


class OpenCache:
    """The outputs of one teacher on one data set, see :meth:`TeacherCache.open`, which verifies where they come from.

    Args:
        rows: the stored bytes.
        encoding: of logits as bytes.
        slots: how many outputs are stored per image: one per view, and that of the image without augmentation.
        teacher: whose outputs are stored.
        data: the data module of the training images.

    Raises:
        UserError: damaged rows, outputs that this teacher does not give, or a teacher whose outputs differ between two
            calls or depend on the other images of the batch.
    """

    def __init__(self, rows: Rows, encoding: Encoding, slots: int, teacher: FrozenTeacher, data: NumberedViews) -> None:
        self._rows = rows
        self._encoding = encoding
        self._slots = slots
        self._resident: Tensor | None = None
        for _ in rows.read_all():
            pass
        self._compare(teacher, data)

    def outputs_of(self, batch: Batch, teacher: Callable[[Tensor], Outputs]) -> Outputs:
        """The teacher's outputs for a batch; if any of them is missing, it is computed and stored.

        What is stored is what is returned, the first time as well.

        Args:
            batch: with its images' indices and views.
            teacher: from images to outputs.
        """
        assert batch.view is not None  # the caller checks that views are counted
        slot = batch.index * self._slots + batch.view
        if self._resident is not None:
            return Outputs(self._encoding.decode(self._resident.index_select(0, slot)))
        here = slot.cpu()
        rows, there = self._rows.read(here)
        if not bool(there.all()):
            rows = self._rows.add(here, self._encoding.encode(teacher(batch.image).logits))
        return Outputs(self._encoding.decode(rows).to(batch.image.device))

    def keep_on(self, device: torch.device, data: NumberedViews) -> None:
        """Copies a full cache to a GPU, if it takes up at most a quarter of its free memory."""
        fits = device.type == "cuda" and self._rows.count * self._rows.width <= torch.cuda.mem_get_info(device)[0] / 4
        if not fits or self._resident is not None or self.missing(data).numel():
            return
        resident = torch.empty(self._rows.count, self._rows.width, dtype=torch.uint8, device=device)
        for start, rows in self._rows.read_all():
            resident[start : start + len(rows)] = rows.to(device)
        self._resident = resident

    def missing(self, data: NumberedViews) -> Tensor:
        """Slots that training and validation need and that are empty."""
        filled = self._rows.filled()
        wanted = torch.zeros(len(filled) // self._slots, self._slots, dtype=torch.bool)
        for numbers, views in data.numbers_and_views():
            wanted[numbers[:, None], views] = True
        return (wanted.view(-1) & ~filled).nonzero().view(-1)

    def fill(
        self, teacher: FrozenTeacher, data: NumberedViews, device: torch.device, batch_size: int = 512
    ) -> Iterator[tuple[int, int]]:
        """Computes and stores what is missing; each process takes its share.

        Args:
            teacher: whose outputs are stored.
            data: as of :meth:`TeacherCache.open`.
            device: where the teacher is.
            batch_size: how many images the teacher takes at once.

        Yields:
            After each batch, how many outputs are stored, and of how many.

        Raises:
            UserError: the folder or its disk can't be written to.
        """
        slots = self.missing(data)
        # shared by image, as what is missing shrinks while other processes fill
        slots = slots[slots // self._slots % world_size() == rank()]
        done = 0
        for index, view, image in data.numbered_batches(slots // self._slots, slots % self._slots, batch_size, device):
            if not self._rows.writable:
                raise UserError(
                    f"the teacher's cache in '{self._rows.folder}' can't be written to: name another folder"
                )
            logits = _logits_as_in_a_step(teacher, image, data)
            self._rows.add(index * self._slots + view, self._encoding.encode(logits))
            done += len(index)
            yield done, len(slots)

    def _compare(self, teacher: FrozenTeacher, data: NumberedViews) -> None:
        """Verifies that the teacher's outputs can be stored, and that some stored outputs are this teacher's."""
        filled = self._rows.filled().nonzero().view(-1)
        slots = filled if len(filled) else self.missing(data)
        some = slots[:: max(len(slots) // _COMPARED, 1)][:_COMPARED]
        if not len(some):
            return
        device = torch.device("cpu") if data.trainer is None else data.trainer.strategy.root_device
        index, view = (some // self._slots).to(device), (some % self._slots).to(device)
        logits = _logits_as_in_a_step(teacher, data.numbered_images(index, view), data).float().cpu()
        if teacher.fault is not None:
            raise UserError(f"the teacher's outputs can't be stored: {teacher.fault}, or train without a cache")
        if not len(filled):
            return
        stored = self._encoding.decode(self._rows.read(some)[0])
        known = stored > stored.amin(1, keepdim=True)  # without the classes that topk leaves out
        error = ((stored - stored.amax(1, keepdim=True)) - (logits - logits.amax(1, keepdim=True))).abs() * known
        if float((error.amax(1) / (logits.amax(1) - logits.amin(1)).clamp_min(1e-6)).median()) > _TOLERANCE:
            raise UserError(
                f"the teacher's cache in '{self._rows.folder}' holds other outputs than the teacher gives now: the "
                "code of the network or the data module changed since it was filled; delete the folder, or name another"
            )


def _logits_as_in_a_step(teacher: FrozenTeacher, image: Tensor, data: NumberedViews) -> Tensor:
    """The teacher's logits in the precision of a training step."""
    with nullcontext() if data.trainer is None else data.trainer.precision_plugin.forward_context():
        outputs: Outputs = teacher(image)
    return outputs.logits
