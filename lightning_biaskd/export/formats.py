"""What an export writes: the network with its normalisation, as weights, as a graph of torch, or as ONNX."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.inputs import InputConversion, InputSpec
from lightning_biaskd.networks.named_inputs import Input, converted, leading, run
from lightning_biaskd.networks.outputs import logits_of
from lightning_biaskd.networks.tap import untapped

Format = Literal["safetensors", "pt2", "onnx"]
Pixels = Literal["normalized", "unit", "uint8"]

OPSET = 18
"""Of exported ONNX files; the exporter of every supported torch writes it."""
BATCHES = (1, 2, 5)


class Exported(nn.Module):
    """What is exported: a copy of the network, after the normalisation if that is part of it."""

    def __init__(self, network: nn.Module, input_spec: InputSpec | Mapping[str, Tensor], pixels: Pixels) -> None:
        super().__init__()
        self.network = untapped(network).cpu().float().requires_grad_(False)
        self.pixels = pixels
        self.convert = None
        self.named: Input | None = None
        if not isinstance(input_spec, InputSpec):
            self.named = converted(_checked(input_spec), None, torch.device("cpu"))
            self.given = f"this example of {', '.join(input_spec)}"
            self.eval()
            return
        self.shape = input_spec.shape
        self.given = f"images of shape {self.shape}"
        if pixels != "normalized":
            channels, greatest = input_spec.channels, {"unit": 1, "uint8": 255}[pixels]
            given = InputSpec([0.0] * channels, [1 / greatest] * channels)
            self.convert = InputConversion(InputSpec(input_spec.mean, input_spec.std), given)
        self.eval()

    def forward(self, image: Input) -> Tensor:
        return logits_of(run(self.network, image if self.convert is None else self.convert(image)))

    def count_classes(self) -> int:
        """Of the logits."""
        try:
            return int(self(self.example(1)).shape[1])
        except (RuntimeError, IndexError) as error:
            raise UserError(
                f"{type(self.network).__name__} does not take {self.given} ({error}): input_spec must say what it was "
                "trained to see"
            ) from error

    def example(self, size: int) -> Input:
        """Random images, always the same, or the first rows of the named tensors."""
        if self.named is not None:
            return leading(self.named, size)
        generator = torch.Generator().manual_seed(size)
        if self.pixels == "uint8":
            return torch.randint(256, (size, *self.shape), dtype=torch.uint8, generator=generator)
        draw = torch.randn if self.pixels == "normalized" else torch.rand
        return draw(size, *self.shape, generator=generator)

    @torch.no_grad()
    def difference(self, other: nn.Module) -> float:
        """Greatest difference of the logits, as a share of the greatest of them or of 1."""
        pairs = [(self(image), logits_of(run(other, image))) for image in map(self.example, BATCHES)]
        return float(
            torch.stack([(mine - its).abs().max() / mine.abs().max().clamp_min(1) for mine, its in pairs]).max()
        )


class ONNXNetwork(nn.Module):
    """An ONNX file as a network: images to logits, on the CPU.

    Args:
        path: of the file.

    Raises:
        UserError: onnxruntime isn't installed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        require("onnxruntime")
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def forward(self, image: Tensor) -> Tensor:
        (logits,) = self.session.run(None, {"image": image.detach().cpu().numpy()})
        return torch.from_numpy(logits).to(image.device)


def _checked(example: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    rows = {len(value) if isinstance(value, Tensor) and value.ndim else 0 for value in example.values()}
    if len(rows) != 1 or 0 in rows:
        raise UserError(
            "input_spec needs an example of each input: tensors by name, with one row for each text or image"
        )
    return example


def _captured(exported: Exported, capture: Callable[..., Any]) -> Any:
    shapes = ({0: Dim("batch")},)
    try:
        return capture(exported, (exported.example(2),), dynamic_shapes=shapes)
    except Exception as error:  # of many kinds, whatever in the network's code can't be captured
        reason = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, torch.onnx.OnnxExporterError) and "Failed to convert" in reason[0]:
            raise UserError(
                f"onnxscript {version('onnxscript')} can't write what torch {torch.__version__} captured of "
                f"{type(exported.network).__name__}: pip install -U torch onnxscript, or export to safetensors"
            ) from error
        raise UserError(
            f"torch.export can't capture {type(exported.network).__name__} for batches of any size ({reason[0]}): "
            "export to safetensors"
        ) from error


def _write_safetensors(exported: Exported, path: Path) -> None:
    state = {name: value.clone().contiguous() for name, value in exported.network.state_dict().items()}
    save_file(state, path, {"format": "pt"})


def _write_pt2(exported: Exported, path: Path) -> None:
    torch.export.save(_captured(exported, torch.export.export), path)


def _write_onnx(exported: Exported, path: Path) -> None:
    require("onnx", "onnxscript", "onnxruntime")
    names = functools.partial(torch.onnx.export, input_names=["image"], output_names=["logits"])
    _captured(exported, functools.partial(names, dynamo=True, opset_version=OPSET, verbose=False)).save(str(path))


WRITERS: dict[Format, Callable[[Exported, Path], None]] = {
    "safetensors": _write_safetensors,
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}


def check_quantizable(exported: Exported, format: Format) -> None:
    """Refuses networks that dynamic quantisation would make slower."""
    if format != "onnx":
        raise UserError("only ONNX files are quantised: export to .onnx")
    matrices = sum(module.weight.numel() for module in exported.modules() if isinstance(module, nn.Linear))
    total = sum(p.numel() for p in exported.parameters())
    if 2 * matrices < total:
        raise UserError(
            f"{type(exported.network).__name__} has {100 * matrices / total:.0f} % of its weights in linear layers: "
            "dynamic quantisation makes convolutions slower, so leave it out"
        )


def quantize(path: Path) -> None:
    """Stores the matrices of an ONNX file in 8 bits, in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(path, path)
    quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)


def require(*packages: str) -> None:
    """Refuses to go on without the packages that ONNX needs."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {' and '.join(missing)}: pip install 'lightning-biaskd[export]'")
