"""What a checkpoint holds: tensors and plain values, which alone are read again."""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

_KEPT = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_CONTAINERS = (dict, OrderedDict, Counter, defaultdict)


def plain(value: Any, place: str = "") -> Any:
    """The same content in plain values: NumPy's numbers and arrays, paths and enumerations are converted.

    An object of another kind is left out, ``None`` in its place, with a warning.

    Args:
        value: of a checkpoint, or all of it.
        place: where in the checkpoint it is, for the warning.

    Example:
        >>> plain({"lr": np.float64(0.1), "root": PurePath("data"), "names": np.array(["a", "b"])})
        {'lr': 0.1, 'root': 'data', 'names': ['a', 'b']}
    """
    if isinstance(value, Tensor) or type(value) in _KEPT:
        return value
    if isinstance(value, Mapping):
        content = {plain(key, place): plain(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
        same = list(content) == list(value) and all(content[key] is item for key, item in value.items())
        if same and type(value) in _CONTAINERS:
            return value
        return OrderedDict(content) if isinstance(value, OrderedDict) else content
    if isinstance(value, list | tuple | set | frozenset):
        items = [plain(item, place) for item in value]
        if type(value) in (list, tuple, set) and all(map(operator.is_, items, value)):
            return value
        return items if isinstance(value, list) else tuple(items) if isinstance(value, tuple) else set(items)
    if isinstance(value, Enum):
        return plain(value.value, place)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value) if value.dtype.kind in "biufc" else value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    rank_zero_warn(
        f"a {type(value).__name__} in {place or 'the checkpoint'} is left out of the checkpoint, which would else be "
        "refused when it is read: keep numbers, text or tensors there"
    )
    return None
