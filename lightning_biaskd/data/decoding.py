"""Image files as 8-bit colour pixels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_biaskd.errors import UserError

_ORIENTATION = 0x0112  # the tag of EXIF data
_LOSSES: dict[str, tuple[Callable[[Image.Image, Image.Image], bool], str]] = {
    "frames": (lambda file, _: getattr(file, "is_animated", False), "holds several images; the first one is used"),
    "orientation": (
        lambda file, _: file.getexif().get(_ORIENTATION, 1) != 1,
        "has an orientation in its EXIF data, which is ignored; the pixels are used as they are stored",
    ),
    "alpha": (
        lambda _, image: "A" in image.getbands() and image.getchannel("A").getextrema()[0] != 255,
        "has transparent pixels; the colours stored under them are used",
    ),
}
_told: set[str] = set()


def decoded(path: str | Path) -> Image.Image:
    """The image of a file, in 8-bit RGB.

    The pixels are the same as with torchvision's loader, except that grey images of 16 bits are scaled to 8 bits. As in
    torchvision, an alpha channel is dropped, only the first frame of an animation is used, and an orientation in the
    EXIF data is ignored. Each process warns about the first image that loses information in this way.

    Raises:
        UserError: the file cannot be read, is not an image, or has 32-bit pixels, whose range is unknown.
    """
    try:
        with Image.open(path) as file:
            opaque = "transparency" not in file.info or file.mode == "I;16"
            image: Image.Image = file if opaque else file.convert("RGBA")
            _warn_of_losses(file, image, path)
            if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM")):
                pixels = np.asarray(image).astype(np.uint32)
                return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels are 32-bit numbers, mode {image.mode}, of a range that isn't known")
            return image.convert("RGB")
    except Exception as error:  # Pillow's readers raise errors of many kinds
        reason = str(error).replace(f" {str(path)!r}", "").rstrip(":").splitlines() or [type(error).__name__]
        raise UserError(
            f"the image '{path}' can't be used ({reason[0]}): replace it, convert it to 8 bits, or remove it"
        ) from None


def _warn_of_losses(file: Image.Image, image: Image.Image, path: str | Path) -> None:
    for kind in _LOSSES.keys() - _told:
        loses, text = _LOSSES[kind]
        if loses(file, image):
            _told.add(kind)
            warnings.warn(f"'{path}' {text}, as torchvision does. No further image like it is reported", stacklevel=3)
