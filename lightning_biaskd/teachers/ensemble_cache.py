"""The opened caches of several teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch

from lightning_biaskd.data.batch import Batch
from lightning_biaskd.data.numbered import NumberedViews
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.teachers.ensemble import EnsembleTeacher
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.teachers.store import OpenCache


class EnsembleCache:
    """An :class:`~lightning_biaskd.teachers.store.OpenCache` for each teacher of an ensemble, used as one.

    Args:
        caches: one for each teacher, in their order.
    """

    def __init__(self, caches: Sequence[OpenCache]) -> None:
        self.caches = list(caches)

    def outputs_of(self, batch: Batch, teacher: FrozenTeacher) -> Outputs:
        """The ensemble's outputs, see :meth:`OpenCache.outputs_of`."""
        ensemble = cast("EnsembleTeacher", teacher)
        pairs = zip(self.caches, ensemble.members, strict=True)
        return ensemble.mean_of([cache.outputs_of(batch, member) for cache, member in pairs])

    def keep_on(self, device: torch.device, data: NumberedViews) -> None:
        """See :meth:`OpenCache.keep_on`."""
        for cache in self.caches:
            cache.keep_on(device, data)

    def fill(
        self, teacher: FrozenTeacher, data: NumberedViews, device: torch.device, batch_size: int = 512
    ) -> Iterator[tuple[int, int]]:
        """See :meth:`OpenCache.fill`; counts one teacher after the other."""
        for cache, member in zip(self.caches, teacher.members, strict=True):
            yield from cache.fill(member, data, device, batch_size)
