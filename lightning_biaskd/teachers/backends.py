"""Faster ways to run a network whose weights never change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.compiled import compile_in_place
from lightning_biaskd.networks.kinds import is_graph, own_dtype
from lightning_biaskd.networks.named_inputs import Input, converted, one_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32, with_logits
from lightning_biaskd.networks.tap import FeatureTap
from lightning_biaskd.teachers.folding import folded
from lightning_biaskd.teachers.onnx_runtime import OnnxRuntime

Backend = Literal["plain", "fast", "compile", "onnxruntime"]
Precision = Literal["32", "bf16", "16"]

_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
_HALF: dict[torch.dtype | None, Precision] = {torch.bfloat16: "bf16", torch.float16: "16"}


def half_precision(model: nn.Module) -> Precision | None:
    """The precision of a network whose weights are in half precision, ``None`` for others."""
    return _HALF.get(own_dtype(model))


def plain(tap: FeatureTap) -> Callable[[Input], Outputs]:
    """A network as a function from images to outputs, in the precision of its weights; float32 follows autocast.

    A network without weights, such as a frozen graph, runs in float32.
    """
    dtype = own_dtype(tap.model)
    return tap if dtype == torch.float32 else _InPrecision(tap, dtype or torch.float32)


def accelerate(
    tap: FeatureTap, image: Input, backend: Backend = "fast", precision: Precision | None = None
) -> Callable[[Input], Outputs]:
    """Returns a network in eval mode as a faster function; the network itself keeps its weights.

    * ``"plain"``: no change.
    * ``"fast"``: batch norms folded into the convolutions before them, which is exact except for rounding, and memory
      channels-last.
    * ``"compile"``: also through ``torch.compile``, in one graph. A network that can't be compiled is run without,
      with a warning.
    * ``"onnxruntime"``: folded, then by ONNX Runtime; on the CPU, logits only.

    TorchScript and exported programs are run as they are.

    Args:
        tap: the network, with the features that are read of it.
        image: (B, …), a few images or named tensors, on which folding is verified.
        backend: one of the above.
        precision: of its weights and arithmetic; ``None`` leaves them, and float32 follows autocast.

    Returns:
        From images (B, …) to :class:`~lightning_biaskd.Outputs`; logits are float32 at least where ``precision`` is
        given.

    Raises:
        UserError: ONNX Runtime isn't installed or can't run the network, or is given features, half precision or
            another device than the CPU; or a precision that the network can't have.
    """
    graph, dtype = is_graph(tap.model), own_dtype(tap.model)
    wanted = dtype if precision is None else _DTYPES[precision]
    if dtype is None and wanted not in (None, torch.float32):
        raise UserError(
            f"{type(tap.model).__name__} has no weights that could be put in teacher_precision {precision!r}: leave it "
            "out"
        )
    given = tap
    if backend != "plain" and not graph and dtype is not None:
        with torch.autocast(one_of(image).device.type, enabled=False):
            tap = folded(_to(tap, torch.promote_types(dtype, torch.float32)), image)
        if any(parameter.ndim == 4 for parameter in tap.model.parameters()):
            tap.model.to(memory_format=torch.channels_last)
    if backend == "onnxruntime":
        return OnnxRuntime(_to(tap, torch.float32), image, precision)
    if tap is not given or precision is not None:
        tap = _to(tap, wanted)
    run = plain(tap) if precision is None or wanted is None else _InPrecision(tap, wanted)
    if graph and tap is not given:
        _verify(run, image, precision)
    if backend != "compile" or graph:
        return run
    return _compiled(run, image)


def _to(tap: FeatureTap, dtype: torch.dtype | None) -> FeatureTap:
    """The same network with floating-point weights of another type, in a copy where that changes any."""
    if dtype is None or all(p.dtype == dtype for p in tap.model.parameters() if p.is_floating_point()):
        return tap
    tap = copy.deepcopy(tap)
    tap.model.to(dtype)
    return tap


def _verify(run: Callable[[Input], Outputs], image: Input, precision: Precision | None) -> None:
    try:
        run(image)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"the teacher is a captured graph, which does not run in teacher_precision {precision!r} ({reason}): leave "
            "it out"
        ) from error


def _compiled(run: Callable[[Input], Outputs], image: Input) -> Callable[[Input], Outputs]:
    try:
        twin = copy.deepcopy(run)
        tap = twin.tap if isinstance(twin, _InPrecision) else cast("FeatureTap", twin)
        compile_in_place(tap.model)
        twin(image)
    except Exception as error:  # whatever in the network's code can't be copied or compiled
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        rank_zero_warn(f"the teacher can't be compiled, so it runs without ({reason}); choose teacher_backend 'fast'")
        return run
    return twin


class _InPrecision:
    """Runs a network in its own precision, whatever autocast is active."""

    def __init__(self, tap: FeatureTap, dtype: torch.dtype) -> None:
        self.tap = tap
        self.dtype = dtype

    def __call__(self, image: Input) -> Outputs:
        with torch.autocast(one_of(image).device.type, enabled=False):
            outputs = self.tap(converted(image, self.dtype))
        logits = at_least_float32(outputs.logits)
        if self.dtype == torch.float64:  # of the network, not of the run
            logits = logits.to(torch.promote_types(one_of(image).dtype, torch.float32))
        return with_logits(outputs, logits)
