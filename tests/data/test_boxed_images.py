"""Images with boxes: their files, their views, and what is refused."""

import json

import numpy as np
import pytest
import torch
from boxed import CLASSES, photo, write_coco, write_voc
from PIL import Image

from lightning_biaskd import UserError
from lightning_biaskd.data import COCODetectionDataModule, VOCDetectionDataModule


def voc(root, **kwargs):
    settings = {"val": None, "val_split": 1, "batch_size": 2, "augment": False, **kwargs}
    return VOCDetectionDataModule(str(root), classes=CLASSES, **settings)


def coco(root, **kwargs):
    settings = {"annotations": "{part}.json", "images": "{part}", "val": None, "test": None, "val_split": 1, **kwargs}
    return COCODetectionDataModule(str(root), **settings)


def first(dataset, number):
    """The sample of an image file."""
    images = getattr(dataset, "dataset", dataset)
    return next(images[n] for n, item in enumerate(images.items) if item.path.stem == str(number))


def test_pascals_boxes_cover_their_pixels(tmp_path):
    data = voc(write_voc(tmp_path, difficult=[2, 3, 6]), val="test")
    data.setup()
    assert (data.num_classes, data.class_names) == (3, ["background", "red", "green"])
    image, target, _ = first(data.train_set, 1)
    for label, (x1, y1, x2, y2) in zip(target["labels"].tolist(), target["boxes"].int().tolist(), strict=True):
        bright = (image[label - 1] == 250).nonzero()
        assert [*bright.amin(0).flip(0).tolist(), *(bright.amax(0).flip(0) + 1).tolist()] == [x1, y1, x2, y2]
    assert first(data.train_set, 0)[1]["boxes"].shape == (0, 4)
    assert first(data.train_set, 2)[1]["labels"].tolist() == [1]  # what is difficult isn't trained on
    assert first(data.test_set, 6)[1]["iscrowd"].tolist() == [0, 1]


def test_cocos_boxes_and_both_numberings(tmp_path):
    write_coco(tmp_path)
    data = coco(tmp_path, val="train")
    data.setup()
    assert data.class_names == ["background", "green", "red"]  # by their ids, 3 and 7
    _, target, _ = first(data.val_set, 1)
    assert target["boxes"].int().tolist() == [list(box) for box in photo(1)[1]]
    assert (target["labels"].tolist(), target["iscrowd"].tolist()) == ([2, 1], [0, 1])
    assert first(data.train_set, 1)[1]["labels"].tolist() == [2]
    data = coco(tmp_path, numbering="ids")
    data.setup()
    assert (data.num_classes, data.class_names[3], data.class_names[7]) == (8, "green", "red")
    assert {label for item in data.train_set.dataset.items for label in [o.label for o in item.objects]} == {3, 7}


def test_views_are_mirrored_with_their_boxes_and_repeat(tmp_path):
    root = write_voc(tmp_path)
    runs = []
    for augment in (True, True, False):
        data = voc(root, augment=augment)
        data.setup()
        views = [data.train_set[number] for number in range(5)]
        for image, target, _ in views:
            for label, (x1, y1, x2, y2) in zip(target["labels"].tolist(), target["boxes"].int().tolist(), strict=True):
                assert (image[label - 1, y1:y2, x1:x2] == 250).all()
        runs.append([image for image, _, _ in views])
    assert all(torch.equal(a, b) for a, b in zip(*runs[:2], strict=True))
    assert 0 < sum(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True)) < 5


def broken(root, number, old, new):
    path = root / "Annotations" / f"{number}.xml"
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("<xmax>", "<xmax>-", r"Annotations/1.xml' has the box .* no area .* set data.drop_degenerate"),
        ("red", "blue", "1.xml' has an object of class 'blue', which is not among data.classes"),
        ("<bndbox>", "<bandbox>", "1.xml' can't be used"),
        ("<xmin>", "<xmin>x", "1.xml' can't be used"),
    ],
)
def test_bad_annotations_are_named(old, new, told, tmp_path):
    broken(write_voc(tmp_path), 1, old, new)
    with pytest.raises(UserError, match=told) as error:
        voc(tmp_path).setup()
    assert "\n" not in str(error.value)


def test_boxes_without_area_are_left_out_if_told(tmp_path):
    broken(write_voc(tmp_path), 1, "<xmax>", "<xmax>-")
    data = voc(tmp_path, drop_degenerate=True, val_split=0)
    with pytest.warns(match="1 boxes of part 'train' have no area"):
        data.setup()
    assert first(data.train_set, 1)[1]["labels"].tolist() == [2]


def test_other_files_that_do_not_fit_are_named(tmp_path):
    root = write_voc(tmp_path / "voc")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / "JPEGImages" / "2.png")
    data = voc(root, val_split=0)
    data.setup()
    with pytest.raises(UserError, match="2.png' is 4x4 and its annotation says 48x40"):
        first(data.train_set, 2)
    (root / "JPEGImages" / "2.png").unlink()
    with pytest.raises(UserError, match="image of .*2.xml' is missing"):
        voc(root).setup()
    with pytest.raises(UserError, match="train2.txt' can't be read"):
        voc(root, train="train2").setup()
    content = write_coco(tmp_path / "coco")
    for change, told in (
        ({"annotations": [{"id": 0, "image_id": 100}]}, "no COCO annotation of boxes .*bbox"),
        ({"annotations": []}, "no image of part 'train' .* has a box"),
        ({"images": [{**content["images"][0], "file_name": "no.png"}], "annotations": []}, "no.png' is missing"),
    ):
        (tmp_path / "coco" / "train.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=told):
            coco(tmp_path / "coco").setup()
    (tmp_path / "coco" / "train.json").write_text("{")
    with pytest.raises(UserError, match=r"train.json' is no COCO annotation"):
        coco(tmp_path / "coco").setup()
