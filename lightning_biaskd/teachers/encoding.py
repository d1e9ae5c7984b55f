"""How a row of logits becomes bytes, and back."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import at_least_float32

StoredType = Literal["float16", "float32"]

_BELOW_ZERO = -(2.0**-24)  # the largest float16 below zero


class Encoding:
    """Rows of logits as bytes of a fixed width, so that the teacher is right and wrong on the same rows as before.

    ``"float16"`` stores the largest logit of a row in float32, and of each class its distance to it. A distance of 0
    stands for the largest logit and for those equal to it, never for a logit that is smaller by less than rounding.
    ``"float32"`` stores the logits themselves.

    Args:
        num_classes: C.
        dtype: ``"float16"`` or ``"float32"``.
        topk: store the largest logits and their classes only, and one value for all other classes that preserves the
            sum of their probabilities; ``None`` stores all.
        temperature: at which that sum is preserved.

    Example:
        >>> encoding = Encoding(3, "float16")
        >>> logits = torch.tensor([[3000.0, 2999.9998, 2998.5]])
        >>> logits.half()[0, 0] == logits.half()[0, 1]
        tensor(True)
        >>> decoded = encoding.decode(encoding.encode(logits))
        >>> bool(decoded[0, 0] > decoded[0, 1]), encoding.width
        (True, 10)
    """

    def __init__(self, num_classes: int, dtype: StoredType, topk: int | None = None, temperature: float = 1.0) -> None:
        self.num_classes = num_classes
        self.dtype = getattr(torch, dtype)
        self.temperature = temperature
        self.kept = None if topk is None else min(topk, num_classes)
        self.index = torch.int16 if num_classes < 1 << 15 else torch.int32
        values = num_classes if self.kept is None else self.kept + 1
        # (how many, of which type) in a row, one after the other
        self._parts = [(1, torch.float32)] if self.dtype == torch.float16 else []
        self._parts += [(values, self.dtype)]
        self._parts += [(self.kept, self.index)] if self.kept is not None else []

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return sum(count * dtype.itemsize for count, dtype in self._parts)

    def encode(self, logits: Tensor) -> Tensor:
        """Turns finite logits (B, C) into rows of bytes (B, width) on the CPU.

        Raises:
            UserError: NaN or infinity.
        """
        z = at_least_float32(logits.detach())
        if not bool(z.isfinite().all()):
            raise UserError(
                "the teacher's logits hold NaN or infinity, which its cache does not store: check its weights, its "
                "precision and the normalisation of its input"
            )
        z = z.cpu()
        top = z.amax(1, keepdim=True)
        parts = []
        if self.kept is not None:
            z, classes = self._largest(z)
            parts.append(classes.to(self.index))
        if self.dtype == torch.float16:
            limit = torch.finfo(torch.float16).max
            rounded = (z - top).clamp(-limit, _BELOW_ZERO).half()
            parts[:0] = [top.float(), torch.where(z == top, 0, rounded)]
        else:
            highest = top.float()
            parts.insert(0, torch.where(z == top, highest, torch.minimum(z.float(), _next_below(highest))))
        return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)

    def decode(self, rows: Tensor) -> Tensor:
        """Turns rows of bytes (B, width) on any device into logits (B, C), float32."""
        parts, start = [], 0
        for count, dtype in self._parts:
            end = start + count * dtype.itemsize
            part = rows[:, start:end].clone(memory_format=torch.contiguous_format)  # aligned, if it is one row, too
            parts.append(part.view(dtype))
            start = end
        values = parts[0]
        if self.dtype == torch.float16:
            top, distance = parts[0], parts[1].float()
            values = torch.where(distance == 0, top, torch.minimum(top + distance, _next_below(top)))
        if self.kept is None:
            return values
        return values[:, -1:].expand(-1, self.num_classes).scatter(1, parts[-1].long(), values[:, :-1])

    def _largest(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The largest logits with that of each other class (B, k + 1), and their classes (B, k)."""
        values, classes = z.topk(self.kept or 1, dim=1)
        others = z.scatter(1, classes, -torch.inf)
        mean = (others / self.temperature).logsumexp(1, keepdim=True)
        mean = self.temperature * (mean - math.log(max(self.num_classes - classes.shape[1], 1)))
        largest = others.amax(1, keepdim=True)
        rest = torch.where(z.amin(1, keepdim=True) == largest, largest, torch.minimum(mean, _next_below(largest)))
        return torch.cat([values, rest.clamp_min(torch.finfo(torch.float32).min)], dim=1), classes


def _next_below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -torch.inf))
