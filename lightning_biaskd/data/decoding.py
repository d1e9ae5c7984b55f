"""Image files of any kind as 8-bit colour pixels."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lightning_biaskd.errors import UserError

Decoder = Literal["torchcodec", "pillow"]

_ORIENTATION = 0x0112  # the tag of EXIF data
_LOSSES: dict[str, tuple[Callable[[Image.Image, Image.Image], bool], str]] = {
    "frames": (lambda file, _: getattr(file, "is_animated", False), "holds several images; the first one is used"),
    "orientation": (
        lambda file, _: not _upright(file),
        "has an orientation in its EXIF data, which is ignored; the pixels are used as they are stored",
    ),
    "alpha": (
        lambda _, image: "A" in image.getbands() and image.getchannel("A").getextrema()[0] != 255,
        "has transparent pixels; the colours stored under them are used",
    ),
}
_told: set[str] = set()


def decoded(path: str | Path) -> Image.Image:
    """The image of a file, in 8-bit RGB, by Pillow.

    The pixels are the same as with torchvision's loader, except that grey images of 16 bits are scaled to 8 bits. As in
    torchvision, an alpha channel is dropped, only the first frame of an animation is used, and an orientation in the
    EXIF data is ignored. Each process warns about the first image that loses information in this way.

    Raises:
        UserError: the file cannot be read, is not an image, or has 32-bit pixels, whose range is unknown.
    """
    with _blamed(path), Image.open(path) as file:
        return _colours(file, path)


def decode(content: bytes, name: str, decoder: Decoder) -> Image.Image | Tensor:
    """The image that ``content`` encodes, in 8-bit RGB, with the same pixels as :func:`decoded`.

    Args:
        content: a whole image file.
        name: of the image, for errors and warnings.
        decoder: torchcodec decodes JPEG files to tensors (3, H, W), about a tenth faster. Any other file, and one with
            an orientation in its EXIF data, which torchcodec would apply, is decoded by Pillow.

    Raises:
        UserError: as for :func:`decoded`.
    """
    if decoder == "torchcodec" and _is_plain_jpeg(content):
        from torchcodec.decoders import decode_jpeg

        try:
            pixels: Tensor = decode_jpeg(content)
            return pixels
        except RuntimeError:
            pass  # Pillow says in plain words what is wrong
    with _blamed(name), Image.open(BytesIO(content)) as file:
        return _colours(file, name)


def installed_decoder(decoder: Decoder | None) -> Decoder:
    """The decoder to use: for ``None`` torchcodec if it is installed, and Pillow otherwise.

    Raises:
        UserError: an unknown decoder, or torchcodec is asked for and not installed.
    """
    if decoder not in ("torchcodec", "pillow", None):
        raise UserError(f"decoder={decoder!r}: choose torchcodec, pillow or null")
    found = importlib.util.find_spec("torchcodec") is not None
    if decoder == "torchcodec" and not found:
        raise UserError("decoder=torchcodec needs a package: pip install 'lightning-biaskd[imagenet]'")
    return decoder or ("torchcodec" if found else "pillow")


def _colours(file: Image.Image, path: str | Path) -> Image.Image:
    opaque = "transparency" not in file.info or file.mode == "I;16"
    image: Image.Image = file if opaque else file.convert("RGBA")
    _warn_of_losses(file, image, path)
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM")):
        pixels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers, mode {image.mode}, of a range that isn't known")
    return image.convert("RGB")


@contextmanager
def _blamed(path: str | Path) -> Iterator[None]:
    """Turns any error into a line that names the image."""
    try:
        yield
    except Exception as error:  # Pillow's readers raise errors of many kinds
        # what Pillow can't identify is named by the memory that holds it
        text = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = text.replace(f" {str(path)!r}", "").rstrip(":").splitlines() or [type(error).__name__]
        raise UserError(
            f"the image '{path}' can't be used ({reason[0]}): replace it, convert it to 8 bits, or remove it"
        ) from None


def _is_plain_jpeg(content: bytes) -> bool:
    """Whether this is a JPEG file of one upright image that is not too large.

    Only the headers of the file's segments are read, which takes a tenth of the time that Pillow takes to open it.
    """
    if content[:2] != b"\xff\xd8":
        return False
    place = 2
    while content[place : place + 1] == b"\xff" and place + 9 < len(content):
        kind, size = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if kind in (0xE1, 0xE2) and content[place + 4 : place + 8] in (b"Exif", b"MPF\0"):
            with suppress(Exception), Image.open(BytesIO(content)) as file:
                return file.format == "JPEG" and _upright(file)
            return False  # Pillow says what is wrong
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[place + i : place + i + 2], "big") for i in (5, 7))
            return height * width <= (Image.MAX_IMAGE_PIXELS or height * width)
        place += 2 + size
    return False


def _upright(file: Image.Image) -> bool:
    return bool(file.getexif().get(_ORIENTATION, 1) == 1)


def _warn_of_losses(file: Image.Image, image: Image.Image, path: str | Path) -> None:
    for kind in _LOSSES.keys() - _told:
        loses, text = _LOSSES[kind]
        if loses(file, image):
            _told.add(kind)
            warnings.warn(f"'{path}' {text}, as torchvision does. No further image like it is reported", stacklevel=4)
