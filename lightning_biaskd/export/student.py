"""A trained network, alone: as weights, as a graph of torch, or for ONNX, with a card; and back again."""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import lightning_biaskd
from lightning_biaskd.errors import UserError
from lightning_biaskd.export import formats
from lightning_biaskd.export.card import build, card_of, describe, read_card, recipe, write_card
from lightning_biaskd.export.formats import OPSET, WRITERS, Exported, Format, ONNXNetwork, Pixels, check_quantizable
from lightning_biaskd.export.untrusted import Size
from lightning_biaskd.files import atomic_write, sha256
from lightning_biaskd.networks.inputs import InputSpec
from lightning_biaskd.networks.weights import load_weights, read

TOLERANCE = 1e-5


def export_student(
    network: nn.Module,
    output: str | Path | None,
    input_spec: InputSpec | Mapping[str, Tensor],
    format: Format | None = None,
    pixels: Pixels = "normalized",
    quantize: Literal["dynamic"] | None = None,
    model: Mapping[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
    metrics: Mapping[str, float] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a trained network and a JSON card that says what it is; :func:`load_student` reads it back.

    The network is exported in eval mode and float32, on a copy. The file is loaded back, and its logits must
    agree with the network's within 1e-5 of the largest one (or of 1); otherwise nothing is written.

    ================ ====================================================================================
    format           written
    ================ ====================================================================================
    ``safetensors``  the weights, under the network's own names
    ``pt2``          a graph of ``torch.export``, for batches of any size
    ``onnx``         an ONNX file of opset 18, for batches of any size: input ``image``, output ``logits``
    ================ ====================================================================================

    The card uses the names of timm's configurations: ``architecture``, ``num_classes``, ``label_names`` and
    ``pretrained_cfg`` (mean, std, input_size). A folder with a timm network can be
    read by ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

    Args:
        network: gives logits (B, C).
        output: a file ending in ``.safetensors``, ``.pt2`` or ``.onnx``, whose card is ``FILE.json``; or a folder, for
            ``model.safetensors`` and ``config.json``, the layout of the Hugging Face hub. ``None`` for
            ``student.FORMAT``.
        input_spec: the format of the images that the network was trained on; its size must be given. For a network that
            takes named tensors, such as ``input_ids``, an example of them; it is written as safetensors only.
        format: ``None`` for what the output's ending says.
        pixels: what a graph takes: ``"normalized"`` images as in training; ``"unit"``, pixels as floats in [0, 1]; or
            ``"uint8"``, pixels in 0…255. The normalisation is then part of the graph.
        quantize: ``"dynamic"`` stores and multiplies the matrices of an ONNX file in 8 bits. It is for transformers: a
            network whose weights are mostly convolutions becomes slower and is refused. The card's
            ``max_difference`` is the largest difference of the logits.
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
    if format != "safetensors" and not isinstance(input_spec, InputSpec):
        raise UserError(
            f"{type(network).__name__} takes {', '.join(input_spec)}, and graphs take images: export to safetensors"
        )
    if format == "safetensors" and pixels != "normalized":
        raise UserError("safetensors hold weights alone: export to pt2 or onnx to have the normalisation with them")
    exported = Exported(network, input_spec, pixels)
    if quantize is not None:
        check_quantizable(exported, format)
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
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, path.name)
        WRITERS[format](exported, part)
        if quantize is not None:
            formats.quantize(part)
        write_card(part, {**card, "sha256": sha256(part)})
        blank = None if spec is not None else copy.deepcopy(exported.network)
        difference = exported.difference(load_student(part, blank, trusted=True))
        if quantize is None and not difference <= TOLERANCE:
            raise UserError(
                f"the exported {type(network).__name__} differs from the network by {difference:.1e} of its logits and "
                f"was not written: it may hold state or branches that {format} can't"
            )
        write_card(part, {**card, "sha256": sha256(part), "max_difference": difference})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for made, place in ((part, path), (card_of(part), card_of(path))):
                with atomic_write(place) as file, made.open("rb") as content:
                    shutil.copyfileobj(content, file)
        except OSError as error:
            raise UserError(f"can't write '{path}' ({error.strerror}): name another output, or make room") from error
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
        raise UserError(f"{path} is not the file that {card_of(path).name} was written for: export it again")
    if path.suffix == ".onnx":
        return ONNXNetwork(path)
    if path.suffix == ".pt2":
        if not trusted:
            raise UserError(f"opening {path} unpickles it: if you trust where it comes from, say trusted=True")
        return torch.export.load(path).module()
    network = build(card.get("model"), trusted, _size(read(path))) if model is None else model
    load_weights(network, path)
    return network.eval()


def _size(content: Any) -> Size:
    return Size.of({name: value for name, value in dict(content).items() if isinstance(value, Tensor)})


def _target(output: str | Path | None, format: Format | None) -> tuple[Path, Format]:
    path = Path(f"student.{format or 'safetensors'}" if output is None else output)
    if path.suffix == "" and format in (None, "safetensors"):
        return path / "model.safetensors", "safetensors"
    for known in WRITERS:
        if path.suffix == f".{known}" and format in (None, known):
            return path, known
    endings = f".{format}" if format else ", ".join(f".{known}" for known in WRITERS)
    raise UserError(f"'{path}' must end in {endings}{'' if format else ', or be a folder, without an ending'}")
