"""Faster ways to run a network whose weights never change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.kinds import is_graph, own_dtype
from lightning_biaskd.networks.outputs import Outputs, at_least_float32, logits_of
from lightning_biaskd.networks.tap import FeatureTap

Backend = Literal["plain", "fast", "compile", "onnxruntime"]
Precision = Literal["32", "bf16", "16"]

_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2
_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
_HALF: dict[torch.dtype | None, Precision] = {torch.bfloat16: "bf16", torch.float16: "16"}


def half_precision(model: nn.Module) -> Precision | None:
    """The precision of a network whose weights are in half precision, ``None`` for others."""
    return _HALF.get(own_dtype(model))


def plain(tap: FeatureTap) -> Callable[[Tensor], Outputs]:
    """A network as a function from images to outputs, in the precision of its weights; float32 follows autocast.

    A network without weights, such as a frozen graph, runs in float32.
    """
    dtype = own_dtype(tap.model)
    return tap if dtype == torch.float32 else _InPrecision(tap, dtype or torch.float32)


def accelerate(
    tap: FeatureTap, image: Tensor, backend: Backend = "fast", precision: Precision | None = None
) -> Callable[[Tensor], Outputs]:
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
        image: (B, …), a few images, on which folding is verified.
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
        with torch.autocast(image.device.type, enabled=False):
            tap = _folded(_to(tap, torch.promote_types(dtype, torch.float32)), image)
        if any(parameter.ndim == 4 for parameter in tap.model.parameters()):
            tap.model.to(memory_format=torch.channels_last)
    if backend == "onnxruntime":
        return _OnnxRuntime(_to(tap, torch.float32), image, precision)
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


def _verify(run: Callable[[Tensor], Outputs], image: Tensor, precision: Precision | None) -> None:
    try:
        run(image)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"the teacher is a captured graph, which does not run in teacher_precision {precision!r} ({reason}): leave "
            "it out"
        ) from error


def _compiled(run: Callable[[Tensor], Outputs], image: Tensor) -> Callable[[Tensor], Outputs]:
    try:
        twin = copy.deepcopy(run)
        tap = twin.tap if isinstance(twin, _InPrecision) else cast("FeatureTap", twin)
        tap.model.compile(fullgraph=True)
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

    def __call__(self, image: Tensor) -> Outputs:
        with torch.autocast(image.device.type, enabled=False):
            outputs = self.tap(image.to(self.dtype))
        logits = at_least_float32(outputs.logits)
        if self.dtype == torch.float64:  # of the network, not of the run
            logits = logits.to(torch.promote_types(image.dtype, torch.float32))
        return Outputs(logits, *outputs[1:])


class _Logits(nn.Module):
    """A network that returns its logits as a tensor, whatever it returns them in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return at_least_float32(logits_of(self.network(image)))


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
        network = _Logits(tap.model)
        network.training = False  # not by eval(), which exported programs refuse
        try:
            program = torch.onnx.export(
                network,
                (image[:2].float(),),
                dynamo=True,
                dynamic_shapes=(batch,),
                input_names=["image"],
                verbose=False,
            )
        except Exception as error:  # whatever in the network's code can't be captured
            raise UserError(
                f"teacher_backend 'onnxruntime' can't capture {type(tap.model).__name__}: choose 'fast'"
            ) from error
        assert program is not None  # as it is when no path is given
        model = program.model_proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the student wants the cores next
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, image: Tensor) -> Outputs:
        (logits,) = self.session.run(None, {"image": image.float().numpy()})
        return Outputs(torch.from_numpy(logits))


@torch.no_grad()
def _folded(tap: FeatureTap, image: Tensor) -> FeatureTap:
    """A copy of the network with its batch norms folded, or the network itself where there is nothing to fold.

    Nothing is folded if that moves the logits by more than rounding. This happens where a network uses a convolution's
    output in a way that hooks don't see.
    """
    image = image.to(own_dtype(tap.model))
    logits = tap(image).logits
    expected = at_least_float32(logits)
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
    if error > (_TOLERANCE if logits.dtype == expected.dtype else _HALF_TOLERANCE):
        rank_zero_warn(f"folding the teacher's batch norms moved its logits by {error:.1e}, so they aren't folded")
        return tap
    return twin


def _pairs(model: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and the batch norms that read them, where nothing else reads them and both run once."""
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
