"""Random numbers as a function of their purpose, so that every rank and every resumed run draws the same."""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # the constants of splitmix64 (Steele, Lea, Flood, 2014), as signed 64-bit integers
_MIX1 = -0x40A7B892E31B1A47
_MIX2 = -0x6B2FB644ECCEEE15
_POSITIVE = (1 << 63) - 1


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: int64 to int64; every input bit affects every output bit."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def hashed(x: Tensor) -> Tensor:
    """Random 63-bit numbers, one for each of x: int64 to int64, not negative.

    Example:
        >>> import torch
        >>> drawn = hashed(torch.tensor([0, 1, 1]))
        >>> bool(drawn[0] != drawn[1]), bool(drawn[1] == drawn[2])
        (True, True)
    """
    return mix(x + GOLDEN) & _POSITIVE


def _shift(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)


def random_bits(seed: int | Tensor, epoch: int | Tensor, index: Tensor) -> Tensor:
    """Random 63-bit numbers, one per sample, that depend on nothing else.

    So any rank, any number of workers and any resumed run draw the same views.

    Args:
        seed: of the run; a number or a scalar tensor.
        epoch: 0-based; a number, or one for each sample.
        index: (B,) int64, the sample's number in its data set.

    Returns:
        (B,) int64, not negative.

    Example:
        >>> a, b = random_bits(0, 0, torch.tensor([0, 1])), random_bits(0, 1, torch.tensor([0, 1]))
        >>> bool((a != b).all()), torch.equal(random_bits(0, 0, torch.tensor([1])), a[1:])
        (True, True)
    """
    # numbers stay on the CPU, as a copy to a GPU waits for it
    start = mix(torch.as_tensor(seed, dtype=torch.int64) * GOLDEN + epoch + 1)
    return hashed(mix(start + index))


def further_bits(bits: Tensor) -> Tensor:
    """A second draw (B,) of :func:`random_bits` from the first, for another view of the same image.

    Example:
        >>> first = random_bits(0, 0, torch.tensor([0, 1]))
        >>> bool((further_bits(first) != first).all())
        True
    """
    return hashed(bits)


def uniform(bits: Tensor) -> Tensor:
    """Numbers (B,) in [0, 1), float32, from the upper bits of :func:`random_bits`."""
    return (bits >> 39).float() / (1 << 24)


def normal(bits: Tensor) -> Tensor:
    """Numbers of the standard normal distribution, float32, from the upper bits of :func:`random_bits`.

    Example:
        >>> drawn = normal(random_bits(0, 0, torch.arange(10000)))
        >>> round(drawn.mean().item(), 1), round(drawn.std().item(), 1)
        (0.0, 1.0)
    """
    return (2 * (bits >> 39) + 1 - (1 << 24)).float().div(1 << 24).erfinv() * 2**0.5  # odd numbers, so never 0 or 1
