"""The format of a network's input images, and the conversion from one format to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.named_inputs import Input
from lightning_biaskd.networks.outputs import at_least_float32

_MOST = 10.0
"""No mean or standard deviation of pixels in [0, 1] is near it, those of 0…255 are far beyond."""
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


@dataclass(frozen=True)
class InputSpec:
    """The format of the images that a network was trained on. The defaults are those of ImageNet.

    Args:
        mean: per channel, of pixels in [0, 1]; one number for grey images, three for colour.
        std: the standard deviation, one number per channel as for ``mean``.
        size: height and width in pixels, or one number for both; ``None`` leaves images at the size they have.
        interpolation: ``"bilinear"`` or ``"bicubic"``, both antialiased, where the size must change.

    Raises:
        UserError: mean and std differ in length, a std is not positive, or they are those of pixels in 0…255.
    """

    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    size: int | Sequence[int] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        for name, value in (("mean", self.mean), ("std", self.std), ("size", size)):
            object.__setattr__(self, name, None if value is None else _as_tuple(value))
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise UserError(f"mean {self.mean} and std {self.std} need one number per channel each, std above 0")
        if not all(abs(value) < _MOST for value in (*self.mean, *self.std)):
            raise UserError(f"mean {self.mean} and std {self.std} are not of pixels in [0, 1]: divide both by 255")

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (D, H, W) of an image.

        Raises:
            UserError: the size isn't given.
        """
        if self.size is None or isinstance(self.size, int):
            raise UserError("it isn't known how large the network's images are: give its input a size")
        return (self.channels, *self.size)

    @classmethod
    def of(cls, values: InputSpec | Mapping[str, Any] | None) -> InputSpec | None:
        """The format itself, or from its arguments, as a checkpoint keeps them."""
        return cls(**values) if isinstance(values, Mapping) else values

    @classmethod
    def of_pretrained(cls, model: nn.Module) -> InputSpec:
        """The format in timm's ``pretrained_cfg`` of a network. It describes the published weights, not others.

        Raises:
            UserError: the network has no ``pretrained_cfg``.
        """
        cfg = getattr(model, "pretrained_cfg", None)
        if not cfg:
            raise UserError(
                f"{type(model).__name__} carries no pretrained_cfg, as timm's networks do: give mean, std and size"
            )
        bicubic = cfg["interpolation"] == "bicubic"
        return cls(cfg["mean"], cfg["std"], cfg["input_size"][1:], "bicubic" if bicubic else "bilinear")

    @classmethod
    def of_data(cls, datamodule: Any) -> InputSpec | None:
        """The normalisation of a data module, from its attributes ``mean`` and ``std``; ``None`` if it has none."""
        mean, std = (getattr(datamodule, name, None) for name in ("mean", "std"))
        return None if mean is None or std is None else cls(mean, std)


def _as_tuple(values: Any) -> tuple[Any, ...]:
    """Plain numbers of a list, a tuple, an array or a tensor, or a single one."""
    values = values.tolist() if hasattr(values, "tolist") else values
    values = values if isinstance(values, Sequence) else [values]
    return tuple(value.item() if hasattr(value, "item") else value for value in values)


class InputConversion(nn.Module):
    r"""Converts images to the format that a network was trained on.

    .. math:: x'_c = \frac{\sigma_c x_c + \mu_c - \mu'_c}{\sigma'_c}

    Grey images are repeated for a network that takes colour, and colour becomes luminance for one that takes grey. Then
    the image is resized, if a size is given. The conversion runs on the device, in float32 or float64.

    Args:
        wanted: the format that the network was trained on.
        given: the format of the images; ``None`` if :meth:`connect` sets it later.

    Raises:
        UserError: numbers of channels that can't be converted into each other, or images before ``given`` is set.

    Shape:
        (B, D, H, W) to (B, D', H', W'); of named tensors, such as ``pixel_values``, those that are images.

    Example:
        >>> conversion = InputConversion(InputSpec(size=4), given=InputSpec(mean=[0.5], std=[0.25]))
        >>> image = conversion(torch.zeros(1, 1, 2, 2))  # grey pixels of 0.5
        >>> image.shape, [round(x, 3) for x in image[0, :, 0, 0].tolist()]
        (torch.Size([1, 3, 4, 4]), [0.066, 0.196, 0.418])
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, wanted: InputSpec, given: InputSpec | None = None) -> None:
        super().__init__()
        self.wanted = wanted
        self.given: InputSpec | None = None
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.zeros(()), persistent=False)
        if given is not None:
            self.connect(given)

    def connect(self, given: InputSpec) -> None:
        """Sets the format of the images."""
        wanted = self.wanted
        if given.channels != wanted.channels and {given.channels, wanted.channels} != {1, 3}:
            raise UserError(
                f"images of {given.channels} channels can't be made into {wanted.channels}: only 1 and 3 can"
            )
        mean, std, mean_, std_ = (
            torch.tensor(values, dtype=torch.float64)[:, None, None]
            for values in (given.mean, given.std, wanted.mean, wanted.std)
        )
        if given.channels > wanted.channels:
            weight = torch.tensor(_LUMINANCE, dtype=torch.float64)[:, None, None]
            mean, std = (weight * mean).sum(0, keepdim=True), weight * std
        self.scale = (std / std_).to(self.scale)
        self.shift = ((mean - mean_) / std_).to(self.shift)
        self.given = given

    def forward(self, image: Input) -> Input:
        if isinstance(image, Tensor):
            return self._converted(image)
        return {name: self._converted(x) if x.is_floating_point() and x.ndim == 4 else x for name, x in image.items()}

    def _converted(self, image: Tensor) -> Tensor:
        if self.given is None:
            raise UserError(
                "it isn't known how the images are normalised: give data_input, or a data module with mean and std"
            )
        if image.shape[1] != self.given.channels:
            raise UserError(f"images have {image.shape[1]} channels, but a mean and std of {self.given.channels}")
        x = at_least_float32(image) * self.scale
        if self.given.channels > self.wanted.channels:
            x = x.sum(1, keepdim=True)
        x = x + self.shift
        if self.wanted.size is not None and x.shape[2:] != self.wanted.size:
            x = F.interpolate(x, self.wanted.size, mode=self.wanted.interpolation, align_corners=False, antialias=True)
        return x.to(image.dtype) if image.is_floating_point() else x

    def extra_repr(self) -> str:
        return f"{self.given} -> {self.wanted}"


def conversion(
    model: nn.Module, wanted: InputSpec | Literal["pretrained"] | None, given: InputSpec | None = None
) -> InputConversion | None:
    """The conversion for a network; ``None`` if no format is given."""
    spec = InputSpec.of_pretrained(model) if isinstance(wanted, str) else InputSpec.of(wanted)
    return None if spec is None else InputConversion(spec, given)


def warn_of_pretrained(teacher: nn.Module, given: InputSpec) -> None:
    """Warns if images are normalised differently from a network's ``pretrained_cfg``."""
    if not getattr(teacher, "pretrained_cfg", None):
        return
    published = InputSpec.of_pretrained(teacher)
    if (published.mean, published.std) != (given.mean, given.std):
        rank_zero_warn(
            f"the data are normalised by mean {given.mean} and std {given.std}, timm's published "
            f"{type(teacher).__name__} by {published.mean} and {published.std}: if the teacher is that one, set "
            "teacher_input to 'pretrained'"
        )
