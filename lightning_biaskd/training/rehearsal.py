"""Some of the images that a Trainer is about to train on, before training begins."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_biaskd.errors import UserError
from lightning_biaskd.randomness.state import unchanged_random_state

_ENOUGH = 64


def some_images(trainer: Trainer) -> tuple[Tensor, int | None]:
    """Images (B, …) of the training set as a step gets them, and how many images the data set numbers.

    They are from all over the data set, which may be sorted by class; its first batch where it can't be indexed. No
    loader is started where it can, and the random state is left as it was.

    Raises:
        UserError: a loader whose batches aren't ``(image, …)``.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    hooks = trainer.lightning_module if data is None else data
    with unchanged_random_state():
        loader = trainer.fit_loop._data_source.dataloader()  # that given to fit, or the data module's, or the module's
        batch = hooks.on_after_batch_transfer(hooks.on_before_batch_transfer(_batch(loader), 0), 0)
    if not isinstance(batch, list | tuple) or not isinstance(batch[0], Tensor):
        raise UserError(
            f"the training loader gives a {type(batch).__name__}: this method looks at some images before training, so "
            "it needs batches (image, target, …), or a call of rehearse(image) before fit"
        )
    return batch[0], getattr(data, "num_samples", None)


def _batch(loader: Any) -> Any:
    if isinstance(loader, DataLoader) and hasattr(loader.dataset, "__getitem__") and hasattr(loader.dataset, "__len__"):
        size = len(loader.dataset)
        count = min(size, _ENOUGH)
        some = [n * size // count for n in range(count)]
        items = getattr(loader.dataset, "__getitems__", lambda numbers: [loader.dataset[n] for n in numbers])(some)
        return loader.collate_fn(items)
    return next(iter(loader))
