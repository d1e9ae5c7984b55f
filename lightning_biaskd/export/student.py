"""A trained network, alone: as weights, as a graph of torch, or for ONNX, with a card; and back again."""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim

import lightning_biaskd
from lightning_biaskd.errors import UserError
from lightning_biaskd.export.card import build, card_of, describe, read_card, recipe, write_card
from lightning_biaskd.files import sha256
from lightning_biaskd.networks.inputs import InputConversion, InputSpec
from lightning_biaskd.networks.outputs import logits_of
from lightning_biaskd.networks.tap import untapped
from lightning_biaskd.networks.weights import load_weights

Format = Literal["safetensors", "pt2", "onnx"]
Pixels = Literal["normalized", "unit", "uint8"]

OPSET = 18
"""Of exported ONNX files; the exporter of every supported torch writes it."""
TOLERANCE = 1e-5
_BATCHES = (1, 2, 5)


def export_student(
    network: nn.Module,
    output: str | Path | None,
    input_spec: InputSpec,
    format: Format | None = None,
    pixels: Pixels = "normalized",
    quantize: Literal["dynamic"] | None = None,
    model: Mapping[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
    metrics: Mapping[str, float] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a trained network and a JSON card that says what it is; :func:`load_student` reads it back.

    The network is exported in eval mode and float32, on a copy. What was written is loaded back and must answer as the
    network does, within 1e-5 of its largest logit (or of 1), before it takes its place; otherwise nothing is written.

    ================ ====================================================================================
    format           written
    ================ ====================================================================================
    ``safetensors``  the weights, under the network's own names
    ``pt2``          a graph of ``torch.export``, for batches of any size
    ``onnx``         an ONNX file of opset 18, for batches of any size: input ``image``, output ``logits``
    ================ ====================================================================================

    The card names what others name likewise: ``architecture``, ``num_classes``, ``label_names`` and ``pretrained_cfg``
    (mean, std, input_size) as timm's configurations do, so that a folder with a timm network in it is one that
    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads.

    Args:
        network: gives logits (B, C).
        output: a file ending in ``.safetensors``, ``.pt2`` or ``.onnx``, whose card is ``FILE.json``; or a folder, for
            ``model.safetensors`` and ``config.json``, the layout of the Hugging Face hub. ``None`` for
            ``student.FORMAT``.
        input_spec: what the network was trained to see; its size must be given.
        format: ``None`` for what the output's ending says.
        pixels: what a graph takes: ``"normalized"`` images as in training; ``"unit"``, pixels as floats in [0, 1]; or
            ``"uint8"``, pixels in 0…255. The normalisation is then part of the graph.
        quantize: ``"dynamic"`` stores and multiplies the matrices of an ONNX file in 8 bits. It is for transformers: a
            network whose weights are mostly convolutions becomes slower by it and is refused. How far off the logits
            are is told by the card's ``max_difference``.
        model: how to build the network, ``class_path`` and ``init_args`` as in YAML, so that weights load back without
            the network at hand.
        label_names: of the C classes.
        metrics: what it achieves, by name.
        source: where it comes from.

    Returns:
        The path of the file.

    Raises:
        UserError: an unknown ending, a network that can't be captured or doesn't come out the same, a missing package.
    """
    path, format = _target(output, format)
    if format == "safetensors" and pixels != "normalized":
        raise UserError("safetensors hold weights alone: export to pt2 or onnx to have the normalisation with them")
    exported = _Exported(network, input_spec, pixels)
    if quantize is not None:
        _check_quantizable(exported, format)
    spec = recipe(model)
    card = {
        **describe(network, spec, input_spec),
        "num_classes": exported.count_classes(),
        "label_names": None if label_names is None else list(label_names),
        "pixels": pixels,
        "metrics": {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)},
        "source": dict(source or {}),
        "file": path.name,
        "opset": OPSET if format == "onnx" else None,
        "quantize": quantize,
        "written_by": {"lightning_biaskd": lightning_biaskd.__version__, "torch": str(torch.__version__)},
    }
    with tempfile.TemporaryDirectory(dir=next(folder for folder in path.parents if folder.is_dir())) as folder:
        part = Path(folder, path.name)
        _WRITERS[format](exported, part)
        if quantize is not None:
            _quantize(part)
        write_card(part, {**card, "sha256": sha256(part)})
        blank = None if spec is not None else copy.deepcopy(exported.network)
        difference = exported.difference(load_student(part, blank, trusted=True))
        if quantize is None and not difference <= TOLERANCE:
            raise UserError(
                f"the exported {type(network).__name__} differs from the network by {difference:.1e} of its logits and "
                f"was not written: it may hold state or branches that {format} can't"
            )
        write_card(part, {**card, "sha256": sha256(part), "max_difference": difference})
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
        card_of(part).replace(card_of(path))
    return path


def load_student(path: str | Path, model: nn.Module | None = None, trusted: bool = False) -> nn.Module:
    """Loads what :func:`export_student` wrote, in eval mode: a network that takes images and gives logits.

    The file must have the digest that its card names. Of ``.safetensors`` nothing is unpickled, and the card may name
    networks of this package, torchvision and timm alone. An ONNX file is run by onnxruntime, on the CPU.

    Args:
        path: the file, or the folder in the layout of the hub.
        model: the network to load weights into, where the card doesn't say how to build it.
        trusted: you trust where the file comes from: its card may then name a network of any installed package, and a
            ``.pt2``, which torch unpickles, is opened.

    Raises:
        UserError: no such file or card, a file that isn't the card's, a network that can't be built, or one of the
            above that wants to be trusted.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError(f"no exported network at '{path}'")
    card = read_card(path)
    if sha256(path) != card["sha256"]:
        raise UserError(f"{path} is not the file that {card_of(path).name} was written for: export it anew")
    if path.suffix == ".onnx":
        return ONNXNetwork(path)
    if path.suffix == ".pt2":
        if not trusted:
            raise UserError(f"opening {path} unpickles it: if you trust where it comes from, say trusted=True")
        return torch.export.load(path).module()
    network = build(card.get("model"), trusted) if model is None else model
    load_weights(network, path)
    return network.eval()


class ONNXNetwork(nn.Module):
    """An ONNX file as a network: images to logits, on the CPU.

    Args:
        path: of the file.

    Raises:
        UserError: onnxruntime isn't installed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        _require("onnxruntime")
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def forward(self, image: Tensor) -> Tensor:
        (logits,) = self.session.run(None, {"image": image.detach().cpu().numpy()})
        return torch.from_numpy(logits)


class _Exported(nn.Module):
    """What is exported: a copy of the network, after the normalisation if that is part of it."""

    def __init__(self, network: nn.Module, input_spec: InputSpec, pixels: Pixels) -> None:
        super().__init__()
        self.network = untapped(network).cpu().float().requires_grad_(False)
        self.pixels = pixels
        self.shape = input_spec.shape
        self.convert = None
        if pixels != "normalized":
            channels, greatest = input_spec.channels, {"unit": 1, "uint8": 255}[pixels]
            given = InputSpec([0.0] * channels, [1 / greatest] * channels)
            self.convert = InputConversion(InputSpec(input_spec.mean, input_spec.std), given)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return logits_of(self.network(image if self.convert is None else self.convert(image)))

    def count_classes(self) -> int:
        """Of the logits."""
        try:
            return int(self(self.example(1)).shape[1])
        except RuntimeError as error:
            raise UserError(
                f"{type(self.network).__name__} does not take images of shape {self.shape} ({error}): input_spec must "
                "say what it was trained to see"
            ) from error

    def example(self, size: int) -> Tensor:
        """Random images, always the same."""
        generator = torch.Generator().manual_seed(size)
        if self.pixels == "uint8":
            return torch.randint(256, (size, *self.shape), dtype=torch.uint8, generator=generator)
        draw = torch.randn if self.pixels == "normalized" else torch.rand
        return draw(size, *self.shape, generator=generator)

    @torch.no_grad()
    def difference(self, other: nn.Module) -> float:
        """Greatest difference of the logits, as a share of the greatest of them or of 1."""
        pairs = [(self(image), other(image)) for image in map(self.example, _BATCHES)]
        return float(
            torch.stack([(mine - its).abs().max() / mine.abs().max().clamp_min(1) for mine, its in pairs]).max()
        )


def _target(output: str | Path | None, format: Format | None) -> tuple[Path, Format]:
    path = Path(f"student.{format or 'safetensors'}" if output is None else output)
    if path.suffix == "" and format in (None, "safetensors"):
        return path / "model.safetensors", "safetensors"
    for known in _WRITERS:
        if path.suffix == f".{known}" and format in (None, known):
            return path, known
    endings = f".{format}" if format else ", ".join(f".{known}" for known in _WRITERS)
    raise UserError(f"'{path}' must end in {endings}{'' if format else ', or be a folder, without an ending'}")


def _captured(exported: _Exported, capture: Callable[..., Any]) -> Any:
    shapes = ({0: Dim("batch")},)
    try:
        return capture(exported, (exported.example(2),), dynamic_shapes=shapes)
    except Exception as error:  # of many kinds, whatever in the network's code can't be captured
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"torch.export can't capture {type(exported.network).__name__} for batches of any size ({reason[0]}): "
            "export to safetensors"
        ) from error


def _write_safetensors(exported: _Exported, path: Path) -> None:
    state = {name: value.clone().contiguous() for name, value in exported.network.state_dict().items()}
    path.write_bytes(save(state, {"format": "pt"}))


def _write_pt2(exported: _Exported, path: Path) -> None:
    torch.export.save(_captured(exported, torch.export.export), path)


def _write_onnx(exported: _Exported, path: Path) -> None:
    _require("onnx", "onnxscript", "onnxruntime")
    names = functools.partial(torch.onnx.export, input_names=["image"], output_names=["logits"])
    _captured(exported, functools.partial(names, dynamo=True, opset_version=OPSET, verbose=False)).save(str(path))


_WRITERS: dict[Format, Callable[[_Exported, Path], None]] = {
    "safetensors": _write_safetensors,
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}


def _check_quantizable(exported: _Exported, format: Format) -> None:
    if format != "onnx":
        raise UserError("only ONNX files are quantised: export to .onnx")
    matrices = sum(module.weight.numel() for module in exported.modules() if isinstance(module, nn.Linear))
    total = sum(p.numel() for p in exported.parameters())
    if 2 * matrices < total:
        raise UserError(
            f"{type(exported.network).__name__} has {100 * matrices / total:.0f} % of its weights in linear layers: "
            "dynamic quantisation makes convolutions slower, so leave it out"
        )


def _quantize(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(path, path)
    quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {' and '.join(missing)}: pip install 'lightning-biaskd[export]'")
