"""A training loader whose order is a function of seed and epoch, so that a run can resume in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_biaskd.data.batch import SeededViews
from lightning_biaskd.errors import UserError


class EpochSampler(DistributedSampler[Any]):
    """A DistributedSampler, for one process too, that can start in the middle of an epoch.

    The order depends only on seed and epoch. Batch by batch, N processes with batches of B see the same images as one
    process with batches of N·B.

    Attributes:
        start: the epoch to resume, and the number of its images to skip.
        repeats: how often an epoch shows an image, one after the other; it then shows a part of all images. The n-th
            time, counted from 0, the index is larger by n times the size of the data set.
    """

    start = (-1, 0)
    repeats = 1

    def __iter__(self) -> Iterator[Any]:
        order = list(super().__iter__()) if self.repeats == 1 else self._repeated()
        epoch, done = self.start
        if epoch != self.epoch:
            return iter(order)
        self.start = (-1, 0)  # once: another run of this loader begins at the beginning
        return iter(order[done:])

    def _repeated(self) -> list[int]:
        size = len(self.dataset)  # type: ignore[arg-type]
        images = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        shown = (images[:, None] + size * torch.arange(self.repeats)).view(-1)[: self.total_size]
        return shown[self.rank :: self.num_replicas].tolist()


class ImageLoader(DataLoader[Any]):
    """A loader that reports a bad image in one line, even from a worker process."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except UserError as error:  # from a worker it comes with a traceback in its text
            raise UserError(str(error).strip().rsplit("UserError: ", 1)[-1]) from None


class ResumableLoader(ImageLoader):
    """A loader of training batches that stores its position and can resume in the middle of an epoch.

    It draws nothing from the global random state.

    Raises:
        UserError: the loaded state is from the middle of an epoch with other batches or another number of processes.
    """

    sampler: EpochSampler
    _given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # lazy, as the epoch is told after iter() is called
        if not isinstance(self.sampler, EpochSampler):  # Lightning's in its place, for overfit_batches
            if isinstance(self.dataset, SeededViews):
                self.dataset.begin(0, 0)
            yield from super().__iter__()
            return
        epoch, done = self.sampler.start
        self._given = done // (self.batch_size or 1) if epoch == self.sampler.epoch else 0
        if isinstance(self.dataset, SeededViews):
            self.dataset.begin(self.sampler.seed, self.sampler.epoch)
        seed = self.sampler.seed + self.sampler.epoch
        self.generator = torch.Generator().manual_seed(seed)  # seeds the workers
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, the number of batches yielded, the number of batches in all, and how they are built."""
        if not isinstance(self.sampler, EpochSampler):
            return {}
        return {"epoch": self.sampler.epoch, "batches": self._given, "of": len(self), **self._kind()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the stored position; after the last batch, with the next epoch."""
        if not state or not isinstance(self.sampler, EpochSampler):
            return
        if state["batches"] >= state.get("of", len(self)):
            return
        kind = {name: state[name] for name in self._kind()}
        if kind != self._kind():
            raise UserError(
                f"the checkpoint was written in the middle of an epoch with {kind}, and this run has {self._kind()}: "
                "go on with the same, or from a checkpoint of the end of an epoch"
            )
        self.sampler.start = (state["epoch"], state["batches"] * (self.batch_size or 1))

    def _kind(self) -> dict[str, int]:
        return {
            "images": len(self.sampler.dataset),  # type: ignore[arg-type]
            "batch_size": self.batch_size or 1,
            "processes": self.sampler.num_replicas,
        }
