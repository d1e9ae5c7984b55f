"""How the weights in a file differ from those of a network, and what probably happened."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# recomputed or only counted: as good with the network's own value
RECOMPUTED = re.compile(
    r"(^|\.)(num_batches_tracked|position_ids|relative_position_index|relative_coords_table|attn_mask)$"
)
_SHOWN = 10
_SHORTCUT = re.compile(r"\.(downsample|shortcut)\.")
_POSITIONS = re.compile(r"(^|[._])pos(ition)?_embed(ding|dings)?($|\.)")


def mismatch(model: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> str | None:
    """Says in one line how a state dict differs from a network's, and what probably happened; ``None`` if it fits.

    What matters is named first: other shapes and types, missing weights, weights that the network doesn't have. Buffers
    that are recomputed or only counted, such as ``num_batches_tracked``, come last.

    Args:
        model: the network.
        state: names and tensors.
        strict: whether missing and additional names are a mismatch.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    shapes = [name for name in own if name in state and not is_lazy(own[name]) and own[name].shape != state[name].shape]
    missing = sorted((name for name in own if name not in state), key=_is_recomputed)
    extra = sorted((name for name in state if name not in model.state_dict()), key=_is_recomputed)
    found = [f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}" for name in shapes]
    kinds = {name: _wrong_kind(name, own[name], state[name]) for name in own if name in state and name not in shapes}
    found += [f"{name} is {kind}" for name, kind in kinds.items() if kind]
    if strict:
        lines = [(name, f"{name} is missing") for name in missing]
        lines += [(name, f"{name} is not in the network") for name in extra]
        found += [line for _, line in sorted(lines, key=lambda line: _is_recomputed(line[0]))]
    if not found:
        return None
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{_reason(own, state, shapes, missing, extra)}{'; '.join(found[:_SHOWN])}{more}"


def _is_recomputed(name: str) -> bool:
    return RECOMPUTED.search(name) is not None


def _wrong_kind(name: str, own: Tensor, given: Tensor) -> str | None:
    """What is wrong with a tensor that torch would convert silently, or fail on."""
    if given.layout is not torch.strided or given.is_nested:
        return "a sparse or nested tensor: save it as a dense one"
    if given.is_meta:
        return "a meta tensor, which holds no values"
    if given.is_quantized:
        return "quantised: dequantise it"
    real, whole = own.is_floating_point(), not own.is_floating_point() and not own.is_complex()
    fits = given.is_floating_point() == real and given.is_complex() == own.is_complex()
    if fits or (whole and _is_recomputed(name)):
        return None
    return f"{given.dtype}, not {own.dtype}"


def _reason(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], shapes: list[str], missing: list[str], extra: list[str]
) -> str:
    """What probably happened, as the beginning of a sentence; empty where nothing can be said."""
    lost, added = ([name for name in names if not _is_recomputed(name)] for names in (missing, extra))
    lost_rest, added_rest = ([name for name in names if not _SHORTCUT.search(name)] for names in (lost, added))
    reasons = [
        f"its shortcuts have {some} (option {option} of the paper, shortcut={option!r} of this package's CIFAR ResNets)"
        for some, option, here, there in (("no parameters", "A", lost, added), ("parameters", "B", added, lost))
        if any(map(_SHORTCUT.search, here)) and not any(map(_SHORTCUT.search, there))
    ]
    if len(_modules(lost_rest)) == len(_modules(added_rest)) == 1 and [own[name].shape for name in lost_rest] == [
        state[name].shape for name in added_rest
    ]:
        reasons.append(f"its {added_rest[0].rpartition('.')[0]} is the network's {lost_rest[0].rpartition('.')[0]}")
        lost_rest = added_rest = []
    if not lost_rest and not added_rest:
        changes = _other_shapes(own, state, shapes)
        if changes is not None and reasons + changes:
            return f"probably {' and '.join(reasons + changes)}; "
    fitting = sum(name in state and own[name].shape == state[name].shape for name in own if not _is_recomputed(name))
    total = sum(not _is_recomputed(name) for name in own)
    if fitting == total and not added:
        return ""
    if 2 * fitting > total:
        return f"probably a variant of it, as {fitting} of its {total} tensors fit; "
    return "probably another network; "


def _modules(names: list[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def _other_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], names: list[str]) -> list[str] | None:
    """What explains the tensors of other shapes; ``None`` if something in them stays unexplained."""
    stem, classifier = next(iter(own), ""), (list(own) or [""])[-1].rpartition(".")[0]
    reasons = {}
    for name in names:
        mine, given = own[name].shape, state[name].shape
        if name == stem and len(mine) == len(given) == 4 and mine[0] == given[0]:
            reasons["another stem (that for small images is 3x3) or number of input channels"] = True
        elif name.rpartition(".")[0] == classifier and mine[1:] == given[1:]:
            reasons[f"another number of classes ({given[0]} in the file)"] = True
        elif _POSITIONS.search(name) and mine[-1:] == given[-1:]:
            reasons["another image size"] = True
        else:
            return None
    return list(reasons)
