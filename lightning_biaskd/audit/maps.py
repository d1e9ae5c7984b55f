"""Pictures of where a teacher of maps is right and wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_biaskd.bias.partition import partition
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import labels_on_grid, resized
from lightning_biaskd.plotting import ORANGE, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHADE = 0.65


def draw_maps(
    image: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    ignore_index: int | None = None,
    student_logits: Tensor | None = None,
) -> Figure:
    """Images with their labels, the networks' classes, and the pixels on which each is wrong.

    Each image has a row. Wrong pixels are orange over the grey image, and ignored pixels are black. Pixel values are
    stretched to the range of their image, so normalised images can be given as they are.

    Args:
        image: (B, D, H, W).
        teacher_logits: (B, C, h, w).
        target: (B, H, W) labels.
        ignore_index: the label of pixels that count nowhere.
        student_logits: (B, C, h, w); ``None`` leaves the student out.

    Raises:
        UserError: logits or labels that are no maps, or matplotlib is missing.
    """
    if teacher_logits.ndim != 4 or target.ndim != 3:
        raise UserError(
            f"logits {tuple(teacher_logits.shape)} and labels {tuple(target.shape)} are no maps: give (B, C, H, W) and "
            "(B, H, W)"
        )
    size = image.shape[2:]
    target = labels_on_grid(target, image)
    known = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    networks = {"teacher": teacher_logits} | ({} if student_logits is None else {"student": student_logits})
    columns = ["image", "labels", *(f"{name}{what}" for name in networks for what in ("", " wrong on"))]
    figure, axes = panels(len(image), len(columns), width=2.6, height=2.6 * size[0] / size[1] + 0.3)
    colours: dict[str, Any] = {"cmap": "tab20", "vmin": 0, "vmax": max(teacher_logits.shape[1] - 1, 19)}
    for row, picture in enumerate(image.detach().cpu().float()):
        shown = [("image", stretched(picture), {}), ("labels", _hidden(target[row], known[row]), colours)]
        for name, logits in networks.items():
            logits = resized(logits[row : row + 1].detach(), size)
            wrong = ~partition(logits, target[row : row + 1].clamp(0, logits.shape[1] - 1))[0] & known[row]
            share = wrong.sum() / known[row].sum().clamp_min(1)
            shown.append((name, _hidden(logits.argmax(1)[0], known[row]), colours))
            shown.append((f"{name} wrong on {share:.1%}", _marked(picture, wrong, known[row]), {}))
        for ax, (title, values, how) in zip(axes[row * len(columns) :], shown, strict=False):
            ax.imshow(values, interpolation="nearest", **how)
            ax.set_title(title, fontsize=9, loc="left")
            ax.set_axis_off()
    return figure


def stretched(picture: Tensor) -> Any:
    """Pixels (H, W, 3) in [0, 1] of an image (D, H, W) with values in any range."""
    low, high = picture.amin(), picture.amax()
    rgb = (picture - low) / (high - low).clamp_min(1e-6)
    return (rgb.expand(3, -1, -1) if len(rgb) == 1 else rgb[:3]).movedim(0, -1).numpy()


def _hidden(classes: Tensor, known: Tensor) -> Any:
    return torch.where(known, classes, torch.nan).cpu().numpy()


def _marked(picture: Tensor, wrong: Tensor, known: Tensor) -> Any:
    grey = torch.from_numpy(stretched(picture)).mean(-1, keepdim=True).expand(-1, -1, 3).clone()
    colour = torch.tensor([int(ORANGE[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    grey[wrong.cpu()] = (1 - _SHADE) * grey[wrong.cpu()] + _SHADE * colour
    grey[~known.cpu()] = 0
    return grey.numpy()
