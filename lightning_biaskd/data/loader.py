"""A training loader whose order is a function of seed and epoch, so that a run goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_biaskd.data.batch import SeededViews
from lightning_biaskd.errors import UserError


class EpochSampler(DistributedSampler[Any]):
    """torch's DistributedSampler, of one process too, that can begin in the middle.

    Its order depends on seed and epoch alone: N processes with batches of B see, batch by batch, what one process with
    batches of N·B sees.

    Attributes:
        start: epoch to begin in the middle of, and how many images of it to leave out.
    """

    start = (-1, 0)

    def __iter__(self) -> Iterator[Any]:
        order = list(super().__iter__())
        epoch, done = self.start
        return iter(order[done:] if epoch == self.epoch else order)


class ImageLoader(DataLoader[Any]):
    """A loader that tells what is wrong with an image in one line, even where a worker process met it."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except UserError as error:  # from a worker it comes with a traceback in its text
            raise UserError(str(error).strip().rsplit("UserError: ", 1)[-1]) from None


class ResumableLoader(ImageLoader):
    """A loader of training batches that knows how far it is, and can begin in the middle of an epoch.

    It draws nothing from the global random state.

    Raises:
        UserError: on loading, the state is of the middle of an epoch with other batches or on other processes.
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
        self.generator = torch.Generator().manual_seed(seed)  # what workers are seeded from
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch were given, of how many, and of what kind they were."""
        if not isinstance(self.sampler, EpochSampler):
            return {}
        return {"epoch": self.sampler.epoch, "batches": self._given, "of": len(self), **self._kind()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on after those batches; after the last one, with the next epoch."""
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
