"""Random numbers of a module for each image, which a resumed run and any number of processes repeat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.randomness.bits import hashed, random_bits


class Draws(nn.Module):
    """Random bits as a function of the run's seed, the epoch and the image's index.

    Attributes:
        seed: buffer, the seed of torch's generator when the module was made. It is saved in the checkpoint.
        epoch: buffer, the 0-based epoch.
    """

    seed: Tensor
    epoch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seed", torch.tensor(torch.initial_seed() % 2**62))
        self.register_buffer("epoch", torch.tensor(0), persistent=False)

    def forward(self, index: Tensor | None, count: int) -> Tensor:
        """Random 63-bit numbers (B, count).

        Args:
            index: (B,) int64, the index of each image in its data set.
            count: how many for each image.

        Raises:
            UserError: there are no indices.
        """
        if index is None:
            raise UserError(
                "random numbers are drawn for each image, so the method needs its index: call "
                "distillation(input, target, index), or give the method with_index(student, index)"
            )
        bits = random_bits(self.seed, self.epoch, index)
        return hashed(bits.unsqueeze(1) + torch.arange(count, device=index.device))

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch."""
        self.epoch.fill_(epoch)
