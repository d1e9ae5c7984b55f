"""Running both networks once before training, on some of the images of the training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.inputs import InputSpec
from lightning_biaskd.networks.named_inputs import Input
from lightning_biaskd.randomness.state import unchanged_random_state
from lightning_biaskd.training.batches import inputs_of
from lightning_biaskd.training.step import Distillation

_ENOUGH = 64


class RehearsedModule(LightningModule):
    """A module that runs its networks once, in a fit or from a checkpoint, for methods that build what they learn.

    Attributes:
        rehearsed: what a checkpoint needs to rehearse without data, ``None`` before.
    """

    distillation: Distillation
    data_input: InputSpec | None
    connect_inputs: Callable[[InputSpec], None]
    rehearsed: dict[str, Any] | None = None

    def configure_model(self) -> None:
        super().configure_model()
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if fitting and self.rehearsed is None and self.distillation.needs_rehearsal:
            self.rehearse(*some_images(self.trainer))

    def rehearse(self, image: Input, num_samples: int | None = None) -> None:
        """Runs both networks once, see :meth:`Distillation.rehearse`; a Trainer's fit calls it where a method needs it.

        The checkpoint remembers the images' shape and normalisation, so that it can be loaded without data.

        Args:
            image: (B, …), a few images as a training step gets them, or named tensors.
            num_samples: size of the training set, for methods with a memory.
        """
        self.distillation.rehearse(image, num_samples)
        self.rehearsed = {"image_shape": _shape(image), "num_samples": num_samples}
        if self.data_input is not None:
            self.rehearsed |= {"mean": list(self.data_input.mean), "std": list(self.data_input.std)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.rehearsed is not None:
            checkpoint["rehearsed"] = self.rehearsed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        rehearsed = checkpoint.get("rehearsed")
        if rehearsed is not None and self.rehearsed is None:
            if self.data_input is None and "mean" in rehearsed:
                self.connect_inputs(InputSpec(rehearsed["mean"], rehearsed["std"]))
            self.rehearse(_zeros(rehearsed["image_shape"]), rehearsed["num_samples"])
        super().on_load_checkpoint(checkpoint)


def _shape(image: Input) -> list[int] | dict[str, tuple[bool, list[int]]]:
    """The shape of one image; of named tensors each shape, and whether it holds integers."""
    if isinstance(image, Tensor):
        return list(image.shape[1:])
    return {name: (not value.is_floating_point(), list(value.shape[1:])) for name, value in image.items()}


def _zeros(shape: Any) -> Input:
    if not isinstance(shape, dict):
        return torch.zeros(2, *shape)
    return {name: torch.zeros(2, *size, dtype=torch.long if whole else None) for name, (whole, size) in shape.items()}


def some_images(trainer: Trainer) -> tuple[Input, int | None]:
    """Images (B, …) or named tensors of the training set, as a step gets them, and how many images the data numbers.

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
    given = batch[0] if isinstance(batch, list | tuple) else batch
    if isinstance(given, Mapping):
        given = inputs_of(given)
    elif given is batch or not isinstance(given, Tensor):
        raise UserError(
            f"the training loader gives a {type(batch).__name__}: this method looks at some images before training, so "
            "it needs batches (image, target, …), or a call of rehearse(image) before fit"
        )
    return given, getattr(data, "num_samples", None)


def _batch(loader: Any) -> Any:
    if isinstance(loader, DataLoader) and hasattr(loader.dataset, "__getitem__") and hasattr(loader.dataset, "__len__"):
        size = len(loader.dataset)
        count = min(size, _ENOUGH)
        some = [n * size // count for n in range(count)]
        items = getattr(loader.dataset, "__getitems__", lambda numbers: [loader.dataset[n] for n in numbers])(some)
        return loader.collate_fn(items)
    return next(iter(loader))
