"""Random numbers that are a function of what they are drawn for: any rank and any resumed run draws the same."""

from __future__ import annotations

from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # the constants of splitmix64 (Steele, Lea, Flood, 2014), as signed 64-bit integers
_MIX1 = -0x40A7B892E31B1A47
_MIX2 = -0x6B2FB644ECCEEE15
_POSITIVE = (1 << 63) - 1


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: int64 to int64, all bits stirred."""
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
