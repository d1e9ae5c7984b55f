"""Tiny detectors, and images with boxes that tell their class by their colour."""

import json
from collections import OrderedDict

import numpy as np
import torch
from PIL import Image
from torch import nn

from lightning_biaskd.models import faster_rcnn

CLASSES = ["red", "green"]
SIZE = (40, 48)


def detector(seed=0, classes=3, channels=4, sampled=16, **options):
    """Two maps of strides 4 and 8, without BatchNorm."""
    torch.manual_seed(seed)
    layers = OrderedDict(fine=nn.Conv2d(3, 6, 5, 4, 2), coarse=nn.Sequential(nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1)))
    settings = {"anchors": [8, 16, 32], "size": 40, "max_size": 60, "proposals": 12, **options}
    return faster_rcnn(nn.Sequential(layers), classes, ["fine", "coarse"], channels, 8, sampled=sampled, **settings)


def photo(number, size=SIZE):
    """Pixels (H, W, 3) and boxes (x1, y1, x2, y2) of one red and one green object; every fourth has none."""
    generator = np.random.default_rng(number)
    pixels, boxes = generator.integers(0, 60, (*size, 3)).astype(np.uint8), []
    for channel in range(2 if number % 4 else 0):
        x, y = int(generator.integers(0, 12)) + 24 * channel, int(generator.integers(0, 20))
        width, height = (int(v) for v in generator.integers(8, 12, 2))
        pixels[y : y + height, x : x + width, channel] = 250
        boxes.append((x, y, x + width, y + height))
    return pixels, boxes


def write_voc(root, count=8, difficult=()):
    """Pascal's layout: 6 images of 8 to train on, the others to test on; ``difficult`` marks the green ones of some."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        pixels, boxes = photo(number)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.png")
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><difficult>{int(label == 1 and number in difficult)}</difficult>"
            f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for label, (x1, y1, x2, y2) in enumerate(boxes)
        )
        size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></size>"
        (root / "Annotations" / f"{number}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    for part, numbers in (("train", range(count - 2)), ("test", range(count - 2, count))):
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(map(str, numbers)))
    return root


def write_coco(root, count=4):
    """COCO's layout, with ids that have gaps and a crowd in image 1."""
    images, annotations = [], []
    (root / "train").mkdir(parents=True)
    for number in range(count):
        pixels, boxes = photo(number)
        Image.fromarray(pixels).save(root / "train" / f"{number}.png")
        images.append({"id": 100 + number, "file_name": f"{number}.png", "width": SIZE[1], "height": SIZE[0]})
        for label, (x1, y1, x2, y2) in enumerate(boxes):
            box = {"image_id": 100 + number, "category_id": (7, 3)[label], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotations.append({"id": len(annotations), "iscrowd": int(number == 1 and label == 1), **box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}],
    }
    (root / "train.json").write_text(json.dumps(content))
    return content
