"""The images that a Trainer is about to train on, a few of them, before training begins."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_biaskd.errors import UserError

_ENOUGH = 64


def first_images(trainer: Trainer) -> tuple[Tensor, int | None]:
    """The first images (B, …) of the training set as a step gets them, and how many images the data set numbers.

    No loader is started and no random number is drawn where the data set can be indexed.

    Raises:
        UserError: a loader whose batches aren't ``(image, …)``.
    """
    loader = trainer.fit_loop._data_source.dataloader()  # those given to fit, or the data module's, or the module's
    batch = _first_batch(loader)
    data = trainer.datamodule  # type: ignore[attr-defined]
    hooks = trainer.lightning_module if data is None else data
    batch = hooks.on_after_batch_transfer(hooks.on_before_batch_transfer(batch, 0), 0)
    if not isinstance(batch, list | tuple) or not isinstance(batch[0], Tensor):
        raise UserError(
            f"the training loader gives a {type(batch).__name__}: a method that reads features needs batches "
            "(image, target, …), or a call of rehearse(image) before fit"
        )
    return batch[0], getattr(data, "num_samples", None)


def _first_batch(loader: Any) -> Any:
    if isinstance(loader, DataLoader) and hasattr(loader.dataset, "__getitem__") and hasattr(loader.dataset, "__len__"):
        some = list(range(min(len(loader.dataset), _ENOUGH)))
        items = getattr(loader.dataset, "__getitems__", lambda numbers: [loader.dataset[n] for n in numbers])(some)
        return loader.collate_fn(items)
    return next(iter(loader))
