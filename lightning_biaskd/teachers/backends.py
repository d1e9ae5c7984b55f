"""Faster ways to run a network whose weights never change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.networks.tap import FeatureTap

Backend = Literal["plain", "fast", "compile", "onnxruntime"]
Precision = Literal["32", "bf16", "16"]

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 5e-2
_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


def accelerate(
    tap: FeatureTap, image: Tensor, backend: Backend = "fast", precision: Precision | None = None
) -> Callable[[Tensor], Outputs]:
    """A network in eval mode as something that answers faster; the network itself keeps its weights.

    * ``"plain"``: as it is.
    * ``"fast"``: batch norms folded into the convolutions before them, which is exact but for rounding, and memory
      channels-last.
    * ``"compile"``: also through ``torch.compile``, in one graph.
    * ``"onnxruntime"``: folded, then by ONNX Runtime; on the CPU, logits alone.

    Args:
        tap: the network, with the features that are read of it.
        image: (B, …), a few images, on which folding is verified.
        backend: one of the above.
        precision: of its weights and arithmetic; ``None`` leaves them, and follows autocast.

    Returns:
        From images (B, …) to :class:`~lightning_biaskd.Outputs`; logits are float32 at least where ``precision`` is
        given.

    Raises:
        UserError: ONNX Runtime isn't installed, or asked for features, half precision or another device than the CPU.
    """
    if backend != "plain":
        with torch.autocast(image.device.type, enabled=False):
            tap = _folded(tap, image)
        if any(parameter.ndim == 4 for parameter in tap.model.parameters()):
            tap.model.to(memory_format=torch.channels_last)
    if backend == "onnxruntime":
        return _OnnxRuntime(tap, image, precision)
    if precision is not None and any(p.dtype != _DTYPES[precision] for p in tap.model.parameters()):
        tap = copy.deepcopy(tap)
        tap.model.to(_DTYPES[precision])
    if backend == "compile":
        tap = copy.deepcopy(tap)
        tap.model.compile(fullgraph=True)
    return tap if precision is None else _InPrecision(tap, precision)


class _InPrecision:
    """Runs a network in its own precision, whatever autocast there is around it."""

    def __init__(self, tap: FeatureTap, precision: Precision) -> None:
        self.tap = tap
        self.dtype = _DTYPES[precision]

    def __call__(self, image: Tensor) -> Outputs:
        with torch.autocast(image.device.type, enabled=False):
            outputs = self.tap(image.to(self.dtype))
        return Outputs(at_least_float32(outputs.logits), *outputs[1:])


class _OnnxRuntime:
    def __init__(self, tap: FeatureTap, image: Tensor, precision: Precision | None) -> None:
        if tap.layers or tap.embedding or image.device.type != "cpu" or precision not in (None, "32"):
            raise UserError(
                "teacher_backend 'onnxruntime' gives logits alone, in float32, on the CPU: choose 'fast' or 'compile' "
                "for a method that reads features, a GPU, or half precision"
            )
        try:
            import onnxruntime
            import onnxscript  # noqa: F401
        except ImportError:
            raise UserError(
                "teacher_backend 'onnxruntime' needs onnxruntime and onnxscript: pip install 'lightning-biaskd[export]'"
            ) from None
        batch = {0: torch.export.Dim("batch")}
        program = torch.onnx.export(
            tap.model, (image[:2],), dynamo=True, dynamic_shapes=(batch,), input_names=["image"], verbose=False
        )
        assert program is not None  # as it is when no path is given
        model = program.model_proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the student wants the cores next
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, image: Tensor) -> Outputs:
        (logits,) = self.session.run(None, {"image": image.numpy()})
        return Outputs(torch.from_numpy(logits))


@torch.no_grad()
def _folded(tap: FeatureTap, image: Tensor) -> FeatureTap:
    """A copy of the network with its batch norms folded, or the network itself where there is nothing to fold.

    If that moves the logits by more than rounding, which it does where a network does something with a convolution's
    output that isn't seen from outside, nothing is folded.
    """
    expected = at_least_float32(tap(image).logits)
    pairs = _pairs(tap.model, image)
    if not pairs:
        return tap
    twin = copy.deepcopy(tap)
    modules: dict[str, Any] = dict(twin.model.named_modules())
    for conv, norm in ((modules[a], modules[b]) for a, b in pairs):
        double = [None if x is None else x.double() for x in (conv.weight, conv.bias, norm.running_mean)]
        double += [None if x is None else x.double() for x in (norm.running_var, norm.weight, norm.bias)]
        w, b, mean, var, scale, shift = double
        weight, bias = fuse_conv_bn_weights(w, b, mean, var, norm.eps, scale, shift)  # type: ignore[arg-type]
        conv.weight = nn.Parameter(weight.to(conv.weight), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(conv.weight), requires_grad=False)
        norm.forward = nn.Identity().forward  # its name and its hooks stay
    error = (twin(image).logits - expected).abs().max() / expected.abs().max()
    if error > _TOLERANCE.get(next(twin.model.parameters()).dtype, _HALF_TOLERANCE):
        rank_zero_warn(f"folding the teacher's batch norms moved its logits by {error:.1e}, so they aren't folded")
        return tap
    return twin


def _pairs(model: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions with the batch norms that alone read their output, each of which runs once."""
    calls: list[tuple[str, nn.Module, Any, Any]] = []

    def record(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: calls.append((name, module, inputs[0] if inputs else None, output))

    hooks = [module.register_forward_hook(record(name)) for name, module in model.named_modules()]
    try:
        model(image[:2])
    finally:
        for hook in hooks:
            hook.remove()
    runs = [name for name, *_ in calls]
    seen = {id(output) for _, module, _, output in calls if module._forward_hooks}  # by it or a module around it
    made = {
        id(output): name
        for name, module, _, output in calls
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and id(output) not in seen
    }
    pairs = []
    for name, module, read, _ in calls:
        plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and module.running_mean is not None
        conv = made.get(id(read)) if plain and not module._forward_pre_hooks else None
        if conv and runs.count(conv) == runs.count(name) == 1 and sum(call[2] is read for call in calls) == 1:
            pairs.append((conv, name))
    return pairs
