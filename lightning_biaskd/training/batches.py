"""What a loader gives, as the steps take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_biaskd.data.batch import Batch
from lightning_biaskd.data.labels import class_numbers
from lightning_biaskd.distributed.padding import flattened
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.named_inputs import Input, one_of
from lightning_biaskd.training.checks import may_read

_LABELS = ("labels", "label", "target")
_BRIGHT = 32.0  # no pixel is as bright once it is normalised


def labelled(batch: Any, batch_idx: int, mixed: bool = False) -> Sequence[Any]:
    """A batch ``(image, target, …)`` with labels (B,) int64.

    Integer labels of any type, (B,) or (B, 1), are converted. A batch may also be a mapping with ``labels``, as those
    of transformers are, whose other tensors are the input; or its input may be a mapping.

    Args:
        batch: what the loader gave.
        batch_idx: index of the batch in the epoch. Values are read in the first batch only.
        mixed: whether floating-point shares (B, C), the labels of mixed images, are taken too.

    Raises:
        UserError: a batch of another kind.
    """
    if isinstance(batch, Mapping) and (name := next((name for name in _LABELS if name in batch), None)):
        batch = batch, batch[name]
    pair = isinstance(batch, Sequence) and len(batch) >= 2 and isinstance(batch[1], Tensor)
    if not pair or not isinstance(batch[0], Tensor | Mapping):
        raise UserError(f"a batch is {_described(batch)}: return (image, target, …) from its loader (collate_fn)")
    if isinstance(batch[0], Mapping):
        batch = inputs_of(batch[0]), *batch[1:]
    given: Sequence[Any] = batch
    image, target = given[:2]
    if isinstance(image, Tensor):
        check_images(image, batch_idx, ours=isinstance(given, Batch))
    size = len(one_of(image))
    if size != len(target):
        raise UserError(f"a batch holds {size} images and {len(target)} labels: give one label for each image")
    if mixed and target.ndim == 2 and target.is_floating_point() and target.shape[1] > 1:
        return given
    of_tokens = isinstance(image, Mapping) and target.ndim == 2 and target.shape[1] > 1
    many = of_tokens or target.ndim > 2
    whole = target.long() if many and not target.is_floating_point() else target
    numbers = whole if many else class_numbers(target, "the labels of this batch")
    if numbers is target:
        return given
    return given._replace(target=numbers) if isinstance(given, Batch) else (image, numbers, *given[2:])


def images_of(batch: Any, batch_idx: int) -> Input:
    """The images (B, …) of a batch to predict, or its named tensors: the batch itself, or its first part.

    Raises:
        UserError: a batch of another kind.
    """
    image = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if isinstance(image, Mapping):
        return inputs_of(image)
    if not isinstance(image, Tensor):
        raise UserError(f"a batch is {_described(batch)}: return images, or (image, …), from its loader (collate_fn)")
    check_images(image, batch_idx, ours=isinstance(batch, Batch))
    return image


def inputs_of(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a mapping that a network takes, without labels.

    Raises:
        UserError: there are none.
    """
    found = {name: value for name, value in given.items() if isinstance(value, Tensor) and name not in _LABELS}
    if not found:
        raise UserError(
            f"a batch is {_described(given)}: let it hold the inputs of the network by name, such as input_ids"
        )
    return found


def check_images(image: Tensor, batch_idx: int, ours: bool) -> None:
    """Images must be normalised, with their channels before height and width.

    Args:
        image: (B, …).
        batch_idx: index of the batch in the epoch.
        ours: whether a data module of this package made the batch, which normalises it on the device.

    Raises:
        UserError: they are not.
    """
    if image.ndim == 4 and "uint8" in str(image.dtype):
        raise UserError(
            "a loader of this data module gives images as bytes, and the data module normalises them: pass the module "
            "itself, trainer.fit(module, datamodule=data), not its loader"
            if ours
            else "images are uint8: convert them to normalised floats in the data set or the collate_fn"
        )
    if image.ndim != 4:
        return
    if image.shape[3] == 3 and min(image.shape[1:3]) > 4:
        raise UserError(
            f"images are {tuple(image.shape)}, with the channels last: give (B, D, H, W), by permute(0, 3, 1, 2)"
        )
    if batch_idx == 0 and image.shape[1] in (1, 3) and image.numel() and may_read(image, batch_idx):
        low, high = image.aminmax()
        if low >= 0 and high > _BRIGHT:
            rank_zero_warn(
                "pixels seem to lie in 0…255: networks are trained on normalised images, (pixel / 255 - mean) / std"
            )


def check_one_loader(trainer: Trainer, stage: str) -> None:
    """Validation and test take one loader.

    Raises:
        UserError: there are several.
    """
    given = getattr(trainer, f"{stage}_dataloaders")  # a stream has no length, so its truth can't be asked
    loaders = [] if given is None else flattened(given)
    if len(loaders) > 1:
        raise UserError(
            f"there are {len(loaders)} loaders for stage {stage!r}, whose figures would be mixed: join their data sets "
            "by torch.utils.data.ConcatDataset, or call the Trainer once for each"
        )


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dict with {', '.join(map(str, batch))}"
    if isinstance(batch, Tensor):
        return f"one tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, Sequence):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch[:4]) or 'nothing'}"
    return f"a {type(batch).__name__}"
