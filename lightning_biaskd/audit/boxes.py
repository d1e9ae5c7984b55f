"""Pictures of which boxes of a detector are right and wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from lightning_biaskd.audit.maps import stretched
from lightning_biaskd.errors import UserError
from lightning_biaskd.plotting import BLUE, GREEN, ORANGE, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IOU = 0.5
"""How much a box must overlap an object to be right."""

_Boxes = Sequence[Mapping[str, Tensor]]


def draw_boxes(
    images: Sequence[Tensor],
    targets: _Boxes,
    teacher: _Boxes,
    student: _Boxes | None = None,
    class_names: Sequence[str] | None = None,
    threshold: float = 0.5,
) -> Figure:
    """Images with their objects, and the boxes that each network finds.

    Each image has a row. Boxes that are right are green, wrong ones are orange, and objects that are missed are blue
    and dashed. A box is right where it is the most confident one of its class to overlap an object by an IoU of 0.5.

    Args:
        images: B tensors (3, H, W); each is stretched to the range of its values.
        targets: ``boxes`` and ``labels`` of each image; objects whose ``iscrowd`` is 1 are left out.
        teacher: ``boxes``, ``labels`` and ``scores`` that the teacher finds in each image.
        student: the same of the student; ``None`` leaves it out.
        class_names: of the labels from 0; ``None`` for their numbers.
        threshold: boxes with lower scores are not drawn.

    Raises:
        UserError: another number of images, or matplotlib is missing.
    """
    networks = {"teacher": teacher} | ({} if student is None else {"student": student})
    if not len(images) == len(targets) == len(teacher) == len(networks.get("student", teacher)):
        raise UserError("draw_boxes needs targets and boxes for each image: give as many of each as images")
    columns = 1 + len(networks)
    height, width = images[0].shape[1:]
    figure, axes = panels(len(images), columns, width=3.2, height=3.2 * height / width + 0.3)
    for row, (image, target) in enumerate(zip(images, targets, strict=True)):
        objects = _counted(target)
        shown = axes[row * columns : (row + 1) * columns]
        for ax in shown:
            ax.imshow(stretched(image.detach().cpu().float()))
            ax.set_axis_off()
        shown[0].set_title(f"{len(objects['boxes'])} objects", fontsize=9, loc="left")
        _add(shown[0], objects, BLUE, class_names)
        for ax, (name, boxes) in zip(shown[1:], networks.items(), strict=True):
            found = _above(boxes[row], threshold)
            right, hit = matched(found, objects)
            _add(ax, _some(found, right), GREEN, class_names)
            _add(ax, _some(found, ~right), ORANGE, class_names)
            _add(ax, _some(objects, ~hit), BLUE, class_names, "--")
            counts = f"{int(right.sum())} right, {int((~right).sum())} wrong, {int((~hit).sum())} missed"
            ax.set_title(f"{name}: {counts}", fontsize=9, loc="left")
    return figure


def matched(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which boxes are right (n,), and which objects (m,) they find. An object is found once, by the best score.

    Args:
        found: ``boxes`` (n, 4), ``labels`` and ``scores`` (n,).
        target: ``boxes`` (m, 4) and ``labels`` (m,).
    """
    overlap = box_iou(found["boxes"], target["boxes"]) * (found["labels"][:, None] == target["labels"])
    right = torch.zeros(len(found["boxes"]), dtype=torch.bool)
    hit = torch.zeros(len(target["boxes"]), dtype=torch.bool)
    for number in found["scores"].argsort(descending=True).tolist():
        free = torch.where(hit, 0, overlap[number])
        if len(free) and free.max() >= IOU:
            right[number] = hit[int(free.argmax())] = True
    return right, hit


def _counted(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ignored = target.get("iscrowd", torch.zeros_like(target["labels"])).bool()
    return _some({name: target[name].cpu() for name in ("boxes", "labels")}, ~ignored.cpu())


def _above(found: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    found = {name: found[name].detach().cpu() for name in ("boxes", "labels", "scores")}
    return _some(found, found["scores"] >= threshold)


def _some(boxes: Mapping[str, Tensor], which: Tensor) -> dict[str, Tensor]:
    return {name: values[which] for name, values in boxes.items()}


def _add(ax: Any, boxes: Mapping[str, Tensor], colour: str, names: Sequence[str] | None, style: str = "-") -> None:
    from matplotlib.patches import Rectangle

    for (x1, y1, x2, y2), label in zip(boxes["boxes"].tolist(), boxes["labels"].tolist(), strict=True):
        how: Any = {"edgecolor": colour, "linestyle": style, "linewidth": 1.2}
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **how))
        text = names[label] if names and label < len(names) else str(label)
        ax.text(x1, y1, text, fontsize=5, color="white", va="bottom", bbox={"facecolor": colour, "pad": 0.5, "lw": 0})
