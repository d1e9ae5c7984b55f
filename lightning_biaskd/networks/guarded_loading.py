"""Lightning's ``load_from_checkpoint``, behind the guard that all weights files pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_biaskd.networks.weights import locate, read


class GuardedLoading:
    """A mixin for modules and data modules. Their ``load_from_checkpoint`` then never runs code that a file holds.

    Nothing but tensors and plain values is unpickled, and a remote file is read only where its address ends in its
    digest, as in :func:`~lightning_biaskd.load_weights`.
    """

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's; see :class:`GuardedLoading`."""
        if isinstance(checkpoint_path, str | Path):
            checkpoint_path = locate(str(checkpoint_path))
            read(checkpoint_path)  # refuses what it can't open in one line
        kwargs["weights_only"] = True
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)  # type: ignore[misc]
