"""Networks that give probabilities where logits are needed."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_biaskd.networks.outputs import at_least_float32


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether rows (B, C), or (B, C, …), are distributions, or too many values between 0 and 1 to be logits.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, -2.0, 0.5]])
        >>> looks_like_probabilities(logits.softmax(1)), looks_like_probabilities(logits)
        (True, False)
    """
    z = at_least_float32(logits)
    z = z.movedim(1, -1).flatten(0, -2) if z.ndim > 2 else z
    if z.ndim != 2 or z.shape[1] < 2 or not bool(((z >= 0) & (z <= 1)).all()):
        return False
    if bool(((z.sum(1) - 1).abs() < 1e-2).all()):
        return True
    return z.numel() >= 64 and bool((z.amax(1) > z.amin(1)).all())


def warn_of_probabilities(logits: Tensor, network: str) -> None:
    """Warns where a network's outputs (B, C) look like probabilities. Log-probabilities are fine: they are logits."""
    if looks_like_probabilities(logits):
        rank_zero_warn(
            f"the outputs of {network} look like probabilities, and logits are needed: leave out the softmax or "
            "sigmoid at the end of the network"
        )
