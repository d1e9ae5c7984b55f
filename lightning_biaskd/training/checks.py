"""What can be wrong with a batch, each told in one line.

Shapes are compared always. Values are read on the CPU always and elsewhere in the first batch only, because reading
them waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn

from lightning_biaskd.bias.rows import check_same_classes
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.distributed.ranks import world_size
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.kinds import is_exported, is_graph, own_dtype, unwrapped
from lightning_biaskd.networks.probabilities import warn_of_probabilities

_ROUNDING = 0.01  # of shares in half precision
_FULL = ("32-true", "64-true", "16-mixed", "bf16-mixed")


def may_read(tensor: Tensor, batch_idx: int) -> bool:
    """Whether values may be read."""
    return batch_idx == 0 or tensor.device.type == "cpu"


def check_labels(
    target: Tensor, logits: Tensor, classes: int, batch_idx: int, network: str, ignore_index: int | None = None
) -> None:
    """Labels (B, …), or mixed ones (B, C), and logits (B, C, …) must be of as many classes as the data."""
    if logits.shape[1] != classes:
        raise UserError(
            f"{network} gives {logits.shape[1]} classes and the data have {classes}: build the network with "
            f"num_classes={classes}"
        )
    mixed = target.is_floating_point() and target.ndim == 2
    if mixed and target.shape != logits.shape:
        raise UserError(f"mixed labels are of {target.shape[1]} classes, the logits of {logits.shape[1]}")
    if mixed and may_read(target, batch_idx) and bool(((target.sum(1) - 1).abs() > _ROUNDING).any()):
        raise UserError(
            "labels of mixed images are shares that sum to 1, and these don't: several labels for one image "
            "(multi-label data) are not supported"
        )
    wanted = ", ".join(("B", *map(str, logits.shape[2:])))
    if target.is_floating_point() and not mixed:
        kind = str(target.dtype).removeprefix("torch.")
        raise UserError(f"labels {tuple(target.shape)} are of type {kind}: give integers ({wanted})")
    if not mixed and target.ndim != logits.ndim - 1:
        raise UserError(
            f"{network} gives logits {tuple(logits.shape)} for labels {tuple(target.shape)}: give labels ({wanted})"
        )
    if not mixed and logits.ndim == 3 and target.shape[1:] != logits.shape[2:]:
        raise UserError(
            f"{network} gives logits {tuple(logits.shape)} for labels {tuple(target.shape)}: give the classes before "
            "the tokens, (B, C, L), or return an object or dict that holds them as 'logits', (B, L, C)"
        )
    if mixed or not may_read(target, batch_idx):
        return
    known = target if ignore_index is None else target[target != ignore_index]
    if not known.numel():
        return
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"labels lie in [{low}, {high}], outside [0, {classes - 1}]: number the classes from 0 and build the "
            "network with as many as there are; ignore_index names a label that stands for none"
        )


def check_teacher(teacher: Tensor, student: Tensor, batch_idx: int) -> None:
    """The teacher's logits must be finite, and of as many classes as the student's."""
    check_same_classes(teacher, student)
    if may_read(teacher, batch_idx) and not bool(teacher.isfinite().all()):
        raise UserError(
            f"the teacher's logits hold NaN or infinity in batch {batch_idx}: check its weights and the normalisation "
            "of its input; nothing was updated in this step"
        )


def check_student_outputs(logits: Tensor, batch_idx: int, network: str) -> None:
    """Warns in the first batch of an epoch where a network that is trained gives probabilities."""
    if batch_idx == 0:
        warn_of_probabilities(logits, network)


def check_student(network: nn.Module, stage: str, precision: str) -> None:
    """The network must be code with values in single precision or more, which alone can be trained and exported.

    Args:
        network: what is trained, or tested.
        stage: ``"fit"``, ``"test"`` and so on.
        precision: the Trainer's.

    Raises:
        UserError: it isn't.
    """
    name = type(network).__name__
    if (stage == "fit" and is_graph(network)) or is_exported(network):
        raise UserError(
            f"{name} is a captured graph (TorchScript or an exported program), which can be a teacher but no student: "
            "build the network by its code and load its weights"
        )
    if stage == "fit" and unwrapped(network) is not network:
        raise UserError(
            f"the student is wrapped in {name}: give the network inside; compile: true compiles it, and "
            "trainer.strategy spreads it over devices"
        )
    if stage == "fit" and own_dtype(network) in (torch.float16, torch.bfloat16) and precision in _FULL:
        raise UserError(
            f"{name} came in half precision, in which updates are lost: call its float(), and set trainer.precision to "
            "bf16-mixed or bf16-true for half precision in training"
        )


def check_views(index: object, views: int, batch_idx: int) -> None:
    """A batch of several views must hold the same images in each of its equal parts, where it numbers them."""
    if not isinstance(index, Tensor) or not may_read(index, batch_idx):
        return
    if len(index) % views or not bool((index.view(views, -1) == index[: len(index) // views]).all()):
        raise UserError(
            f"this method compares {views} views of the same images, but this batch does not contain "
            "them: set data.strong_view to true, or views of the method to 1"
        )


def check_pairs(distiller: Distiller, rows: int, batch_idx: int) -> None:
    """A method that compares samples needs two in a batch of all ranks; an epoch's last batch may have one.

    Raises:
        UserError: the first batch has only one.
    """
    needs = distiller.needs
    if needs.pairwise and batch_idx == 0 and rows // needs.views * world_size() < 2:
        raise UserError(
            f"{type(distiller).__name__} compares the samples of a batch with each other, and the batch has one: raise "
            "data.batch_size"
        )


def check_index(index: object, num_samples: int | None, batch_idx: int) -> Tensor:
    """The indices (B,) of a batch's images must be there, and below the number of images."""
    if not isinstance(index, Tensor) or index.is_floating_point():
        raise UserError(
            "this method needs to know which images are in a batch: let the data set return "
            "(image, target, index), as those of lightning_biaskd.data do"
        )
    if num_samples is not None and may_read(index, batch_idx):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= num_samples:
            raise UserError(
                f"images are numbered {low} to {high} in this batch, outside [0, {num_samples - 1}]: num_samples of "
                "the data module must say how many there are"
            )
    return index


def check_steady_steps(trainer: Trainer, interval: str) -> None:
    """What follows the steps of a run must know how many there are; Lightning's estimate takes epochs for equal.

    Raises:
        UserError: the number of accumulated batches changes, and no ``max_steps`` is set.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    changes = any(
        isinstance(c, GradientAccumulationScheduler) and len(set(c.scheduling.values())) > 1 for c in callbacks
    )
    if interval == "step" and changes and trainer.max_steps < 0:
        raise UserError(
            "GradientAccumulationScheduler changes how many steps an epoch has, so they can't be counted beforehand: "
            "let schedules follow epochs (interval, lr_interval: epoch), or set trainer.max_steps"
        )


def check_accumulation(trainer: Trainer) -> None:
    """DDP's static graph can't begin with batches whose gradients aren't exchanged; torch says so by an assertion."""
    static = getattr(trainer.strategy, "_ddp_kwargs", {}).get("static_graph", False)
    if static and trainer.accumulate_grad_batches > 1:
        raise UserError(
            "DDP with a static graph can't accumulate gradients: add --trainer.strategy.static_graph false, or leave "
            "accumulate_grad_batches at 1"
        )
