"""Checks in the first calls whether a network can be used as a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.named_inputs import Input, copied, leading, one_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.networks.probabilities import warn_of_probabilities
from lightning_biaskd.networks.tap import FeatureTap
from lightning_biaskd.randomness.state import unchanged_random_state
from lightning_biaskd.teachers.backends import half_precision

_IMAGES = 16
_PART = 2
_TOLERANCE, _HALF_TOLERANCE = 5e-3, 5e-2  # of the range of the logits, between batches of two sizes


def tried(tap: FeatureTap, run: Callable[[Input], Outputs], image: Input) -> tuple[str | None, bool]:
    """Runs a teacher three times on a few images, and warns of what is wrong with its outputs.

    Args:
        tap: the network.
        run: the network as a function from images to outputs, unprepared.
        image: (B, …), the first images, or named tensors.

    Returns:
        Why its outputs can't be stored, with the remedy, ``None`` if they can; and whether it works in place on its
        input, as a network does that begins with ``nn.ReLU(inplace=True)``.

    Raises:
        UserError: the network doesn't take the images, or changes its buffers.
    """
    name = type(tap.model).__name__
    image = leading(image, _IMAGES)
    buffers = [(name, buffer, buffer.clone()) for name, buffer in tap.model.named_buffers()]
    with unchanged_random_state():
        own = copied(image)
        first = _logits(run, own, name)
        again, part = (_logits(run, copied(some), name) for some in (image, leading(image, _PART)))
    if any(not torch.equal(now, before) for _, now, before in buffers if not before.isnan().any()):
        raise UserError(
            f"{name} changes its buffers when it runs, as batch norms do in training: put the teacher in eval mode "
            "before it is captured or exported"
        )
    if first.ndim < 2:
        raise UserError(f"{name} returned logits of shape {tuple(first.shape)}: a teacher gives (B, C) or (B, C, …)")
    warn_of_probabilities(first, "the teacher")
    half = torch.is_autocast_enabled(one_of(image).device.type) or half_precision(tap.model) is not None
    fault = None
    if _differ(first, again, 1e-3):
        fault = (
            f"{name} gives other outputs each time it sees the same images, as F.dropout does that ignores eval mode: "
            "write F.dropout(x, p, self.training)"
        )
    elif _has_batch_statistics(tap.model) or _differ(first[: len(part)], part, _HALF_TOLERANCE if half else _TOLERANCE):
        fault = (
            f"{name} gives outputs that depend on the other images in the batch, as batch norms without running "
            "statistics do: give it a batch norm with track_running_stats=True and train it again"
        )
    if fault is not None:
        rank_zero_warn(fault)
    return fault, not torch.equal(one_of(own), one_of(image))


def _logits(run: Callable[[Input], Outputs], image: Input, name: str) -> Tensor:
    try:
        return at_least_float32(run(image).logits)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the network's code or graph raises
        reason = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), "")
        raise UserError(
            f"{name} does not take {_described(image)} ({type(error).__name__}: "
            f"{reason.strip()}): check teacher_input, or capture it for batches of any size"
        ) from error


def _described(image: Input) -> str:
    if isinstance(image, Tensor):
        return f"{len(image)} images of shape {tuple(image.shape[1:])}"
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in image.items())


def _has_batch_statistics(network: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) and module.running_mean is None for module in network.modules())


def _differ(a: Tensor, b: Tensor, tolerance: float) -> bool:
    size = (a.amax(1) - a.amin(1)).amax() + 1e-4 * a.abs().amax()
    return bool((a - b).abs().amax() > tolerance * size)
