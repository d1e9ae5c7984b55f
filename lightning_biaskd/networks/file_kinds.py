"""Telling weights from other files by their first bytes, so that an error can say what a file is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ZIP = b"PK\x03\x04"
LEGACY = b"\x80"  # a pickle, as torch.save wrote before torch 1.6
SAFETENSORS = re.compile(rb".{6}\0\0\{", re.DOTALL)  # the length of a header below 2^48, then the header

_UNPACK = "unpack it and give the file inside"
_CONVERT = "convert it to a state dict of torch or to safetensors"
_STARTS = {
    b"version https://git-lfs": "a Git LFS pointer: run git lfs pull to get the file itself",
    b"\x89HDF": f"an HDF5 file, as Keras and TensorFlow write: {_CONVERT}",
    b"\x93NUMPY": f"a NumPy array: {_CONVERT}",
    b"GGUF": f"a GGUF file: {_CONVERT}",
    b"\x1f\x8b": f"an archive (gzip): {_UNPACK}",
    b"BZh": f"an archive (bzip2): {_UNPACK}",
    b"\xfd7zXZ": f"an archive (xz): {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"an archive (zstd): {_UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"an archive (7z): {_UNPACK}",
    b"Rar!": f"an archive (rar): {_UNPACK}",
    b"%PDF": "a PDF document: download the weights",
    b"\x7fELF": "a compiled program: give a checkpoint or .safetensors file",
}
_ENDINGS = {
    ".onnx": "an ONNX file, which is a network of its own: give a checkpoint or .safetensors file",
    ".tflite": f"a TensorFlow Lite file: {_CONVERT}",
    ".pb": f"a graph of TensorFlow: {_CONVERT}",
    ".index": f"a part of a TensorFlow checkpoint: {_CONVERT}",
    ".msgpack": f"a msgpack file, as Flax writes: {_CONVERT}",
}


def another_kind(head: bytes, path: Path) -> str | None:
    """What a file is that can't hold weights of torch, and the remedy; ``None`` if it may hold them.

    Args:
        head: its first bytes, 512 or more of them if the file has so many.
        path: of the file, for its ending.
    """
    if not head:
        return "an empty file: copy or download it again"
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[257:262] == b"ustar":
        return f"an archive (tar): {_UNPACK}"
    if ".data-0" in path.suffix:
        return _ENDINGS[".index"]
    if head.startswith((ZIP, LEGACY)) or SAFETENSORS.match(head):
        return None
    if path.suffix in _ENDINGS:
        return _ENDINGS[path.suffix]
    if head.lstrip()[:1] == b"<":
        return "a web page: download the file itself"
    if head.lstrip()[:1] in (b"{", b"["):
        return "JSON, such as a configuration: give the file with the weights"
    if not re.search(rb"[^\t-\r -\x7e\x80-\xff]", head):  # no control characters
        return "text: give a checkpoint or .safetensors file"
    return None


def kind_of_zip(names: Iterable[str]) -> str | None:
    """What a zip file with these entries is, if it isn't what ``torch.save`` writes, and the remedy."""
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return "a TorchScript program: give a state dict, as torch.save(network.state_dict(), …) writes"
    if ends & {"archive_format", "serialized_exported_program.json"}:
        return "an exported program (.pt2): give a state dict, as torch.save(network.state_dict(), …) writes"
    if "data.pkl" in ends:
        return None
    if "model.weights.h5" in ends:
        return f"a Keras file: {_CONVERT}"
    if any(name.endswith(".npy") for name in ends):
        return f"a NumPy archive: {_CONVERT}"
    return f"an archive (zip): {_UNPACK}"
