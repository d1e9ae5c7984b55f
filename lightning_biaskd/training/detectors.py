"""The parts of torchvision's two-stage detectors, run one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import fastrcnn_loss

from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs

IGNORED = -100
"""The label of rows that fill a batch up to the same number of proposals per image."""

_SAME = ("image_mean", "image_std", "min_size", "max_size", "size_divisible", "fixed_size")


class Answers(NamedTuple):
    """What the box head of a detector says of N proposals.

    Attributes:
        logits: (N, C), class 0 is the background.
        deltas: (N, 4C), the box of each class relative to the proposal.
        maps: the pyramid by name, each (B, D, h, w).
    """

    logits: Tensor
    deltas: Tensor
    maps: Mapping[str, Tensor]


class Sampled(NamedTuple):
    """The proposals of a batch on which a box head is trained.

    Attributes:
        images: (B, 3, H, W), resized, normalised and filled up to one size.
        sizes: height and width of each image before it was filled up.
        proposals: B tensors (n, 4), boxes as (x1, y1, x2, y2) in pixels.
        labels: B tensors (n,), 0 for the background.
        deltas: B tensors (n, 4), the true box relative to the proposal.
        losses: of the region proposal network.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    proposals: list[Tensor]
    labels: list[Tensor]
    deltas: list[Tensor]
    losses: dict[str, Tensor]


def check_detector(network: nn.Module) -> None:
    """A network must be a two-stage detector of torchvision, of boxes alone.

    Raises:
        UserError: it is not.
    """
    name = type(network).__name__
    if not isinstance(network, GeneralizedRCNN):
        raise UserError(
            f"{name} is no two-stage detector: it has no softmax over classes and background on which a teacher is "
            "right or wrong; use a Faster R-CNN of torchvision, or lightning_biaskd.models.faster_rcnn"
        )
    if network.roi_heads.has_mask() or network.roi_heads.has_keypoint():
        raise UserError(f"{name} predicts masks or keypoints beside boxes, which are not distilled: use a Faster R-CNN")


def check_pair(student: nn.Module, teacher: nn.Module) -> None:
    """Both detectors must see the same images and have the same classes.

    Raises:
        UserError: they do not.
    """
    own, others = classes_of(student), classes_of(teacher)
    if own != others and None not in (own, others):
        raise UserError(
            f"the teacher has num_classes={others} and the student {own}, the background included: both must be built "
            "for the same classes"
        )
    for name in _SAME:
        own, others = (_listed(getattr(network.transform, name, None)) for network in (student, teacher))
        if own != others:
            raise UserError(
                f"the student takes images with {name}={own} and the teacher with {others}: build both with the same, "
                "as the teacher judges the student's proposals"
            )


def classes_of(network: nn.Module) -> int | None:
    """C, the number of classes of a two-stage detector, the background included; ``None`` if its layers don't say."""
    found = getattr(getattr(network.roi_heads, "box_predictor", None), "cls_score", None)
    return getattr(found, "out_features", None)


def pyramid(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The maps of a backbone by name."""
    maps = network.backbone(images)  # type: ignore[operator]
    return {"0": maps} if isinstance(maps, Tensor) else maps


def sampled(network: Any, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> tuple[Sampled, Answers]:
    """What a detector in train mode samples, and what it says of it.

    Args:
        network: a two-stage detector of torchvision.
        images: B tensors (3, H, W) in [0, 1].
        targets: B mappings with ``boxes`` and ``labels``.
    """
    resized, targets = network.transform(list(images), [dict(target) for target in targets])
    maps = pyramid(network, resized.tensors)
    proposals, losses = network.rpn(resized, maps, targets)
    proposals, _, labels, deltas = network.roi_heads.select_training_samples(proposals, targets)
    found = Sampled(resized.tensors, resized.image_sizes, proposals, labels, list(deltas), losses)
    return found, answers(network, maps, found)


def answers(network: Any, maps: dict[str, Tensor], of: Sampled) -> Answers:
    """What a detector's box head says of proposals, on the detector's own maps."""
    heads = network.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, of.proposals, of.sizes)))
    return Answers(logits, deltas, maps)


def box_loss(own: Answers, labels: Tensor, deltas: Tensor) -> Tensor:
    """Torchvision's loss of the boxes of N proposals against deltas (N, 4), where the label (N,) is an object."""
    loss: Tensor = fastrcnn_loss(own.logits, own.deltas, [labels], [deltas])[1]
    return loss


def boxes_of(network: Any, deltas: Tensor, labels: Tensor, proposals: Tensor) -> Tensor:
    """The box (N, 4) that a network predicts for the class of each label (N,)."""
    own = deltas.view(len(deltas), -1, 4)[torch.arange(len(deltas), device=deltas.device), labels]
    boxes: Tensor = network.roi_heads.box_coder.decode_single(own, proposals)
    return boxes


def as_rows(network: Any, found: Answers, of: Sampled, layers: Sequence[str] = ()) -> tuple[Outputs, Tensor]:
    """A batch of answers in static shapes, as the strategy takes them.

    Args:
        network: whose answers they are.
        found: the answers.
        of: the proposals.
        layers: maps of the pyramid that a method reads, by name, or counted from the end.

    Returns:
        Outputs with logits (B, C, R) for R proposals per image, and labels (B, R), :data:`IGNORED` where an image has
        fewer. A region is where an object is; the background has none.

    Raises:
        UserError: a map that the pyramid doesn't have.
    """
    counts, size = [len(labels) for labels in of.labels], network.roi_heads.fg_bg_sampler.batch_size_per_image
    height, width = of.images.shape[2:]
    scale = of.proposals[0].new_tensor([width, height, width, height])
    pairs = zip(of.labels, of.proposals, strict=True)
    regions = [torch.where(labels[:, None] > 0, boxes / scale, 0) for labels, boxes in pairs]
    parts: tuple[Tensor, ...] = torch.split(found.logits, counts)
    logits = _filled(parts, size, 0).transpose(1, 2)
    features = {layer: _map(found.maps, layer) for layer in layers}
    return Outputs(logits, features, regions=_filled(regions, size, 0)), _filled(of.labels, size, IGNORED)


def _filled(parts: Sequence[Tensor], size: int, value: int) -> Tensor:
    """Tensors (n, …) of several images as one (B, size, …)."""
    return torch.stack([F.pad(part, [0, 0] * (part.ndim - 1) + [0, size - len(part)], value=value) for part in parts])


def _map(maps: Mapping[str, Tensor], layer: str) -> Tensor:
    numbered = dict(zip(map(str, range(-len(maps), 0)), maps.values(), strict=True))
    found = {**maps, **numbered}.get(layer)
    if found is None:
        raise UserError(f"the pyramid has no map {layer!r}: choose some of {', '.join(maps)}")
    return found


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
