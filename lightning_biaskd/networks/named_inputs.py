"""What a network is given: a tensor, or named tensors that it takes as keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_biaskd.errors import UserError

Input = Tensor | Mapping[str, Tensor]


def run(network: nn.Module, input: Input) -> Any:
    """What a network answers to a tensor, or to named tensors as keyword arguments; a single one needs no name.

    Raises:
        UserError: the network does not take tensors of these names.
    """
    if isinstance(input, Tensor):
        return network(input)
    if len(input) == 1:
        return network(one_of(input))
    try:
        return network(**input)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise UserError(
            f"{type(network).__name__} does not take {', '.join(input)} as its arguments ({error}): let the loader "
            "give what the network takes"
        ) from error


def one_of(input: Input) -> Tensor:
    """The tensor, or the first one of a mapping; all have the same device and the same number of rows."""
    return input if isinstance(input, Tensor) else next(iter(input.values()))


def leading(input: Input, rows: int) -> Input:
    """The first rows, images or texts, of an input."""
    return input[:rows] if isinstance(input, Tensor) else {name: value[:rows] for name, value in input.items()}


def copied(input: Input) -> Input:
    """A copy of the input."""
    return input.clone() if isinstance(input, Tensor) else {name: value.clone() for name, value in input.items()}


def converted(input: Input, dtype: torch.dtype | None, device: torch.device | None = None) -> Input:
    """The input on another device, and what isn't an integer in another type."""
    if not isinstance(input, Tensor):
        return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in input.items()}
    return input.to(device, dtype if input.is_floating_point() else None)


def check_vocabularies(student: nn.Module, teacher: nn.Module) -> None:
    """Networks of transformers that read text must have vocabularies of one size, as they get the same tokens.

    Raises:
        UserError: they do not.
    """
    sizes = [getattr(getattr(network, "config", None), "vocab_size", None) for network in (student, teacher)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise UserError(
            f"the student reads a vocabulary of {sizes[0]} tokens and the teacher one of {sizes[1]}: both need the "
            "same tokenizer"
        )
