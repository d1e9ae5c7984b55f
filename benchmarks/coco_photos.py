"""Turns photos with boxes in YOLO's text format into COCO's JSON, which the data module reads.

    python benchmarks/coco_photos.py --yolo data/coco256_yolo
    biaskd fit -c configs/data/coco.yaml --data.root data/coco256_yolo --data.images "images/{part}2017" \
        --data.numbering order …

A line of a label file is "class cx cy w h", in shares of the image. Photos without a file have no boxes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from PIL import Image


def converted(photos: list[Path], labels: Path, names: list[str]) -> dict[str, object]:
    """COCO's JSON of some photos; the ids of the categories begin with 1."""
    images, annotations = [], []
    for number, path in enumerate(photos):
        with Image.open(path) as file:
            width, height = file.size
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        text = labels / f"{path.stem}.txt"
        for line in text.read_text("ascii").splitlines() if text.is_file() else []:
            category, x, y, w, h = map(float, line.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            found = {"id": len(annotations), "image_id": number, "category_id": int(category) + 1, "bbox": box}
            annotations.append({**found, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def run() -> None:
    """Writes annotations/instances_PART.json beside images and labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yolo", type=Path, default=Path("data/coco256_yolo"), help="images, labels and config.yaml")
    root = parser.parse_args().yolo
    found = yaml.safe_load((root / "config.yaml").read_text("utf-8"))["names"]
    names = list(found.values()) if isinstance(found, dict) else found
    (root / "annotations").mkdir(exist_ok=True)
    for folder in sorted((root / "images").iterdir()):
        content = converted(sorted(folder.glob("*.jpg")), root / "labels" / folder.name, names)
        path = root / "annotations" / f"instances_{folder.name}.json"
        path.write_text(json.dumps(content), "utf-8")
        print(f"{path}: {len(content['images'])} photos, {len(content['annotations'])} boxes")


if __name__ == "__main__":
    run()
