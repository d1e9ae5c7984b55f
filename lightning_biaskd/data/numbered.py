"""Training views with numbers, so that a cache can store the teacher's outputs for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_biaskd.errors import UserError


@runtime_checkable
class NumberedViews(Protocol):
    """A data module whose training views have numbers from 0, as a cache of the teacher's outputs needs.

    The number after the last view stands for the image without augmentation, which validation sees.

    Attributes:
        trainer: the Trainer it is connected to.
        num_samples: number of training images, including those held out for validation.
    """

    trainer: Trainer | None
    num_samples: int | None

    @property
    def view_count(self) -> int | None:
        """The number of training views per image; ``None`` if they have no numbers."""

    def numbered_images(self, index: Tensor, view: Tensor) -> Tensor:
        """Views of training images, as a network sees them.

        Args:
            index: (B,), indices of the images.
            view: (B,), numbers of the views, up to :attr:`view_count`, which must be known.

        Returns:
            (B, D, H, W) float, on the device of ``view``.
        """

    def numbered_batches(
        self, index: Tensor, view: Tensor, batch_size: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields the indices, the numbers and :meth:`numbered_images`, batch by batch in the given order."""

    def numbers_and_views(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the indices of the images that training and then validation use, with the numbers of their views."""

    def fingerprint(self) -> str:
        """Identifies the training images and what the numbers of views mean, regardless of splits and labels."""


def checked_views(views: int | None) -> int | None:
    """Checks the number of fixed views.

    Raises:
        UserError: it is below 1.
    """
    if views is not None and views < 1:
        raise UserError(f"views={views} leaves nothing to train on: give 1 at least, or null for all views")
    return views
