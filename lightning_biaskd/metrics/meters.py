"""The metrics of a run, each built when it is first needed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_biaskd.distributed.ranks import world_size

Meter = Metric | MetricCollection


class Meters(nn.Module):
    """Metrics by name, each built at its first update. Several processes count as one.

    A metric gathers its counts from all processes, so all processes must take part, even one that had no data of its
    own. :meth:`compute` first agrees with the other processes on the names, and builds the metrics that this process
    lacks. All processes must call it, and all get the same values.

    The metrics move with the module that holds them. They add nothing to its ``state_dict``.

    Example:
        >>> from lightning_biaskd.metrics import BiasRate, Means
        >>> meters = Meters()
        >>> meters.update("train/means", lambda: Means(["loss"]), [torch.tensor(2.0)], 3)
        >>> meters.update("val/bias", lambda: BiasRate(2), torch.eye(2), torch.tensor([0, 0]))
        >>> meters.compute("val/")["val/bias"]["wrong_rate"]
        tensor(0.5000)
        >>> meters.reset("val/")
        >>> list(meters.compute())
        ['train/means']
    """

    def __init__(self) -> None:
        super().__init__()
        self._meters = nn.ModuleList()
        self._place: dict[str, int] = {}  # a name may hold a dot, which a ModuleDict refuses
        self._updated: set[str] = set()
        self._probe = torch.empty(0)  # is where the metrics belong

    def update(self, name: str, build: Callable[[], Meter], *args: Any) -> None:
        """Adds a batch to the metric of that name.

        Args:
            name: ``"val/"``, ``"train/agreement"`` and so on.
            build: makes the metric, at the first use of the name.
            *args: what the metric's own ``update`` takes.
        """
        if name not in self._place:
            device = next((arg.device for arg in args if isinstance(arg, Tensor)), self._probe.device)
            self._add(name, build(), device)
        cast("Any", self._meters[self._place[name]]).update(*args)
        self._updated.add(name)

    def compute(self, prefix: str = "") -> dict[str, Any]:
        """The values of the metrics whose names begin with ``prefix``, of those updated on any process.

        Returns:
            What each metric's ``compute`` gives, by name, on the device of the metric.
        """
        own = [name for name in self._place if name in self._updated and name.startswith(prefix)]
        names = self._agreed(own) if world_size() > 1 else own
        values = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*")  # on a rank without data
            for name in names:
                values[name] = cast("Any", self._meters[self._place[name]]).compute()
        return values

    def reset(self, prefix: str = "") -> None:
        """Empties the metrics whose names begin with ``prefix``."""
        for name, place in self._place.items():
            if name.startswith(prefix):
                cast("Any", self._meters[place]).reset()
                self._updated.discard(name)

    def _add(self, name: str, meter: Meter, device: torch.device) -> None:
        self._place[name] = len(self._meters)
        self._meters.append(meter.to(device))

    def _agreed(self, own: list[str]) -> list[str]:
        """The names on all processes, in the same order on each. Those that this process lacks are built."""
        told: list[Any] = [None] * world_size()
        dist.all_gather_object(told, (own, list(self._place)))
        names = list(dict.fromkeys(name for updated, _ in told for name in updated))
        known = [set(built) for _, built in told]
        for name in names:
            if all(name in built for built in known):
                continue
            source = next(rank for rank, built in enumerate(known) if name in built)
            packet = [self._empty(name) if source == dist.get_rank() else None]
            dist.broadcast_object_list(packet, src=source)
            if name not in self._place:
                self._add(name, cast("Meter", packet[0]), self._probe.device)
        return names

    def _empty(self, name: str) -> Meter:
        meter = copy.deepcopy(self._meters[self._place[name]]).cpu()
        cast("Any", meter).reset()
        return cast("Meter", meter)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Meters:
        self._probe = fn(self._probe)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]
