"""Faster R-CNN with a feature pyramid on any network for classification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from lightning_biaskd.errors import UserError

_ROI = 7
_RATIOS = (0.5, 1.0, 2.0)


def faster_rcnn(
    backbone: nn.Module,
    num_classes: int,
    layers: Sequence[str] = ("layer1", "layer2", "layer3", "layer4"),
    channels: int = 256,
    hidden: int = 1024,
    anchors: Sequence[int] = (32, 64, 128, 256, 512),
    size: int = 800,
    max_size: int = 1333,
    proposals: int = 1000,
    sampled: int = 512,
) -> FasterRCNN:
    """Faster R-CNN (arXiv 1506.01497) with a feature pyramid (arXiv 1612.03144), of torchvision's parts.

    torchvision's own constructors have one width and are made for photos of 800 pixels. This one is for small networks
    and small images. The defaults are torchvision's.

    Args:
        backbone: a network for classification, whose layers after the last of ``layers`` are left out.
        num_classes: C + 1, the classes and the background.
        layers: the layers of ``backbone`` whose maps the pyramid is made of, from the finest to the coarsest.
        channels: of each map of the pyramid.
        hidden: width of the two layers of the box head.
        anchors: side of the anchors in pixels for each map of the pyramid, which has one more than ``layers``.
        size: the shorter side to which images are resized, in pixels.
        max_size: the longest that the other side may become.
        proposals: of the region proposal network per image.
        sampled: proposals per image on which the box head is trained.

    Raises:
        UserError: a layer that the backbone doesn't have, or another number of anchors than maps.

    Example:
        >>> from lightning_biaskd.models import resnet8
        >>> detector = faster_rcnn(resnet8(), 4, ["layer2", "layer3"], 8, 16, anchors=[8, 16, 32], size=32).eval()
        >>> [sorted(found) for found in detector([torch.zeros(3, 32, 40)])]
        [['boxes', 'labels', 'scores']]
    """
    known = [name for name, _ in backbone.named_modules() if name]
    if unknown := [layer for layer in layers if layer not in known]:
        there = ", ".join(name for name in known if "." not in name)
        raise UserError(f"{type(backbone).__name__} has no layer {unknown[0]!r}: choose of {there}, or of their parts")
    if len(anchors) != len(layers) + 1:
        raise UserError(f"{len(anchors)} anchors for a pyramid of {len(layers) + 1} maps: give one for each map")
    maps = [str(number) for number in range(len(layers))]
    return FasterRCNN(
        Pyramid(backbone, dict(zip(layers, maps, strict=True)), channels),
        min_size=size,
        max_size=max_size,
        rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in anchors), (_RATIOS,) * len(anchors)),
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=proposals,
        box_roi_pool=MultiScaleRoIAlign(maps, _ROI, sampling_ratio=2),
        box_head=TwoMLPHead(channels * _ROI**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes),
        box_batch_size_per_image=sampled,
    )


class Pyramid(nn.Module):
    """A feature pyramid on a network.

    Args:
        backbone: the network.
        layers: the name of its map for each layer.
        channels: of each map.

    Attributes:
        out_channels: the same, as torchvision's detectors ask for it.

    Shape:
        (B, 3, H, W) to maps (B, channels, h, w) by name, the finest first; ``"pool"`` is the coarsest, pooled.
    """

    def __init__(self, backbone: nn.Module, layers: dict[str, str], channels: int) -> None:
        super().__init__()
        self.body = create_feature_extractor(backbone, layers)
        self.body.eval()
        with torch.no_grad():
            maps = self.body(torch.zeros(1, 3, 64, 64))
        self.body.train()
        self.fpn = FeaturePyramidNetwork([x.shape[1] for x in maps.values()], channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of images (B, 3, H, W)."""
        maps: dict[str, Tensor] = self.fpn(self.body(image))
        return maps
