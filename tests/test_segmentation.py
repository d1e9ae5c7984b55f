"""Labels at each pixel: data, scores, and training on them."""

import csv
import inspect
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
import yaml
from PIL import Image
from processes import process_group, spawn
from tiny import by_gamma
from torch import nn

from lightning_biaskd import ClassificationModule, DistillationModule, UserError
from lightning_biaskd.__main__ import main
from lightning_biaskd.audit import audit, draw_maps
from lightning_biaskd.callbacks import BiasMonitor, ResultTable
from lightning_biaskd.data import SegmentationFolderDataModule
from lightning_biaskd.data.augment import scale_and_crop
from lightning_biaskd.distillers import CWD, KD
from lightning_biaskd.export import export_student
from lightning_biaskd.metrics import SegmentationScores
from lightning_biaskd.metrics.segmentation import BAND, near_boundary
from lightning_biaskd.models import UNet
from lightning_biaskd.networks.inputs import InputSpec
from lightning_biaskd.randomness.bits import random_bits

CLASSES = ["ground", "thing", "sky"]
VALUES = [7, 11, 23]
SIZE = (12, 16)


def scene(number, size=SIZE, values=(0, 1, 2), void=9):
    """An image whose red tells the class, and its label map; the first row has no label."""
    generator = np.random.default_rng(number)
    label = np.full(size, values[0], np.uint8)
    top, left = generator.integers(1, size[0] - 4), generator.integers(0, size[1] - 5)
    label[: size[0] // 3] = values[2]
    label[top : top + 4, left : left + 5] = values[1]
    image = np.stack([40 + 80 * sum(k * (label == value) for k, value in enumerate(values))] * 3, 2).astype(np.uint8)
    label[0] = void
    return image, label


def write(root, images, labels, names, image_suffix="", label_suffix="", palette=False, **kwargs):
    for number, name in enumerate(names):
        image, label = scene(number, **kwargs)
        for folder, array, suffix in ((images, image, image_suffix), (labels, label, label_suffix)):
            path = root / folder / f"{name}{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            file = Image.fromarray(array)
            if palette and array.ndim == 2:
                file.putpalette(list(range(256)) * 3)
            file.save(path)


def camvid(root, **kwargs):
    for part, size in (("train", 6), ("val", 3), ("test", 2)):
        write(root, part, f"{part}annot", [f"image{number}" for number in range(size)])
    return SegmentationFolderDataModule(str(root), batch_size=2, classes=CLASSES, size=SIZE, **kwargs)


def test_camvids_layout(tmp_path):
    data = camvid(tmp_path)
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [6, 3, 2]
    image, label = scene(1)
    batch = data.val_set.pick(torch.tensor([1]))
    assert np.array_equal(batch.image[0].permute(1, 2, 0), image)
    assert np.array_equal(batch.target[0], np.where(label == 9, 255, label))


def test_pascals_layout_with_a_palette_and_lists(tmp_path):
    write(tmp_path, "JPEGImages", "SegmentationClass", ["a", "b", "c", "d"], palette=True)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c\na\n")
    (lists / "val.txt").write_text("d\n")
    data = SegmentationFolderDataModule(
        str(tmp_path),
        images="JPEGImages",
        labels="SegmentationClass",
        lists="ImageSets/Segmentation/{part}.txt",
        test=None,
        classes=CLASSES,
        size=SIZE,
    )
    data.setup()
    assert (len(data.train_set), len(data.val_set)) == (2, 1)
    assert data.test_set is data.val_set
    assert np.array_equal(data.train_set.pick(torch.tensor([0])).image[0].permute(1, 2, 0), scene(2)[0])


def test_cityscapes_layout_with_some_ids_as_classes(tmp_path):
    for part in ("train", "val"):
        names = [f"town/{part}{number}" for number in range(2)]
        suffixes = {"image_suffix": "_leftImg8bit", "label_suffix": "_gtFine_labelIds"}
        write(tmp_path, f"leftImg8bit/{part}", f"gtFine/{part}", names, values=VALUES, **suffixes)
    data = SegmentationFolderDataModule(
        str(tmp_path),
        images="leftImg8bit/{part}",
        labels="gtFine/{part}",
        test=None,
        classes=CLASSES,
        label_values=VALUES,
        size=SIZE,
        **suffixes,
    )
    data.setup()
    found = data.train_set.pick(torch.tensor([0])).target[0]
    assert np.array_equal(found, np.where(scene(0)[1] == 9, 255, scene(0)[1]))


def test_images_of_another_shape_are_fitted_without_distortion(tmp_path):
    write(tmp_path, "train", "trainannot", ["a"], size=(24, 24))
    data = SegmentationFolderDataModule(str(tmp_path), val=None, val_split=0, test="train", classes=CLASSES, size=SIZE)
    data.setup()
    batch = data.train_set.pick(torch.tensor([0]))
    assert (batch.target[0, :, 12:] == 255).all()
    assert (batch.target[0, 2:, :12] != 255).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"images": "photos/{part}"}, "there is no folder .*photos"),
        ({"label_suffix": "_x"}, "image0_x.png' is missing"),
        ({"image_suffix": "_x"}, "no image whose name ends in '_x'"),
        ({"lists": "{part}.txt"}, "train.txt' can't be read"),
        ({"label_values": [1, 2]}, "one number from 0 to 255 for each of 3 classes"),
        ({"label_values": [100, 101, 102]}, "no pixel of part 'train' has a label"),
        ({"scale": (2.0, 1.0)}, "smallest and the largest"),
        ({"val": None, "val_split": 0, "test": None}, "nothing to test on"),
    ],
)
def test_bad_settings_are_told_in_one_line(settings, told, tmp_path):
    with pytest.raises(UserError, match=told) as error:
        camvid(tmp_path, **settings).setup()
    assert "\n" not in str(error.value)


def test_images_and_maps_may_share_a_folder(tmp_path):
    for suffix in ("", "_map"):
        root = tmp_path / f"shared{suffix}"
        for number in range(2):
            image, label = scene(number)
            (root / "train").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / "train" / f"{number}{'.bmp' if not suffix else '.png'}")
            Image.fromarray(label).save(root / "train" / f"{number}{suffix}.png")
        settings = {"labels": "{part}", "label_suffix": suffix, "val": None, "test": None, "val_split": 1}
        data = SegmentationFolderDataModule(str(root), classes=CLASSES, size=SIZE, **settings)
        data.setup()
        images, labels = data.read("train")
        assert [np.array_equal(images[n].permute(1, 2, 0), scene(n)[0]) for n in range(2)] == [True, True]
        assert int((labels == 1).sum()) > 0
    Image.fromarray(scene(0)[0]).save(root / "train" / "0.bmp")
    with pytest.raises(UserError, match="have one name and one label map"):
        data.read("train")


def test_a_class_that_no_training_pixel_has_is_told(tmp_path):
    data = camvid(tmp_path)
    data = SegmentationFolderDataModule(str(tmp_path), classes=[*CLASSES, "car", "boat"], size=SIZE)
    with pytest.warns(match="no pixel of part 'train' has a label of car, boat: check label_values"):
        data.setup()


def test_its_arguments_are_those_that_it_takes():
    named = set(inspect.signature(SegmentationFolderDataModule).parameters)
    assert not named & {"args", "kwargs", "mix", "views", "cutout", "strong_view", "label_noise", "download"}
    assert {"batch_size", "color_jitter", "train_size", "drop_last"} <= named


def test_maps_that_are_damaged_or_do_not_fit_are_told(tmp_path):
    data = camvid(tmp_path)
    place = tmp_path / "trainannot" / "image1.png"
    for content, told in ((np.zeros((4, 4), np.uint8), "of one size"), (np.zeros((*SIZE, 3), np.uint8), "8 bits")):
        Image.fromarray(content).save(place)
        with pytest.raises(UserError, match=told):
            data.setup()
    place.write_bytes(b"no image")
    with pytest.raises(UserError, match="image1.png' can't be used"):
        data.setup()


def test_images_and_labels_move_together():
    image, label = (torch.from_numpy(np.stack(x)) for x in zip(*(scene(n, (48, 64)) for n in range(40)), strict=True))
    label[label == 9] = 255
    bits = random_bits(0, 0, torch.arange(40))
    pixels, target = scale_and_crop(image.movedim(3, 1), label, bits, (0.5, 2.0), True, (0.0, 0.0, 0.0), 255)
    known = target != 255
    told = ((pixels[:, 0] - 40) / 80).round().long()  # the class, except where two classes mix
    inner = known & ~near_boundary(target, known, 3) & ~(F.max_pool2d((~known).float(), 7, 1, 3) > 0)
    assert inner.float().mean() > 0.3
    assert torch.equal(told[inner], target[inner])
    shares = known.flatten(1).float().mean(1)
    assert shares.min() < 0.5 < shares.max()
    assert (pixels[:, 0][~known & (pixels[:, 0] == 0)] == 0).any()
    again = scale_and_crop(image.movedim(3, 1), label, bits, (0.5, 2.0), True, (0.0, 0.0, 0.0), 255)
    assert torch.equal(again[1], target)


def test_without_scaling_views_are_the_images_or_their_mirrors():
    image, label = (torch.from_numpy(np.stack(x)) for x in zip(*(scene(n) for n in range(8)), strict=True))
    bits = torch.arange(8)
    pixels, target = scale_and_crop(image.movedim(3, 1), label, bits, (1.0, 1.0), True, (0.4, 0.4, 0.4), 255)
    for number in range(8):
        mirrored = [
            x.flip(-1) if number % 2 else x for x in (image.movedim(3, 1)[number].float(), label[number].long())
        ]
        torch.testing.assert_close(pixels[number], mirrored[0], atol=1e-2, rtol=0)
        assert torch.equal(target[number], mirrored[1])


def test_scores_are_those_of_torchmetrics():
    logits, target = torch.randn(4, 5, 9, 7), torch.randint(4, (4, 9, 7))  # class 4 may only be predicted
    target[torch.rand(target.shape) < 0.2] = 255
    scores = SegmentationScores(5, 255)
    for part in (slice(0, 1), slice(1, 4)):
        scores.update(logits[part], target[part])
    found = scores.compute()
    iou = torchmetrics.JaccardIndex("multiclass", num_classes=5, ignore_index=255, average=None)(logits, target)
    torch.testing.assert_close(torch.stack([found[f"iou/{k}"] for k in range(5)]), iou)
    torch.testing.assert_close(found["miou"], iou.mean())
    accuracy = torchmetrics.Accuracy("multiclass", num_classes=5, ignore_index=255, average="micro")(logits, target)
    torch.testing.assert_close(found["acc1"], accuracy)


def test_classes_that_do_not_occur_have_no_share_in_the_mean():
    target = torch.tensor([[[0, 0], [1, 1]]])
    scores = SegmentationScores(4, class_names=list("abcd"), prefix="val/")
    scores.update(F.one_hot(target, 4).movedim(-1, 1), target)
    found = scores.compute()
    assert found["val/miou"] == 1
    assert found["val/iou/d"].isnan()


def test_near_a_boundary():
    target = torch.randint(3, (2, 20, 20)) * (torch.rand(2, 20, 20) < 0.01)
    known = torch.rand(target.shape) > 0.1
    found = near_boundary(target, known, 3)
    for b, i, j in ((b, i, j) for b in range(2) for i in range(20) for j in range(20)):
        window = np.s_[b, max(i - BAND, 0) : i + BAND + 1, max(j - BAND, 0) : j + BAND + 1]
        assert found[b, i, j] == (len(target[window][known[window]].unique()) > 1)


class Coarse(nn.Module):
    """As torchvision's networks answer, and at half the resolution."""

    def __init__(self):
        super().__init__()
        self.network = UNet(3, widths=(4, 8))

    def forward(self, image):
        return {"out": self.network(F.avg_pool2d(image, 2)), "aux": image}


@pytest.mark.parametrize(
    ("coarse", "distiller"),
    [("teacher", KD()), ("student", CWD()), (None, KD())],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_student_is_distilled_pixel_by_pixel(coarse, distiller, tmp_path, trainer):
    networks = [Coarse() if name == coarse else UNet(3, widths=(4, 8)) for name in ("student", "teacher")]
    bias = by_gamma("drop", "batch", "ramp", trust="run")
    module = DistillationModule(*networks, distiller, bias, optimizer=lambda p: torch.optim.Adam(p, 0.01))
    run = trainer(max_epochs=2, callbacks=[BiasMonitor()], limit_val_batches=None)
    run.fit(module, camvid(tmp_path))
    values = {key: value.item() for key, value in run.callback_metrics.items()}
    assert values["val/gap"] == pytest.approx(values["val/miou"] - values["val/teacher_miou"])
    assert {"val/iou/thing", "val/boundary_miou", "bias/wrong_rate/sky", "train/acc1"} <= values.keys()
    counts = [values[f"val/{name}"] for name in ("student_only", "teacher_only", "both", "neither")]
    assert sum(counts) == 3 * 16 * 11  # the first row has no label
    assert (counts[0] + counts[2]) / sum(counts) == pytest.approx(values["val/acc1"])
    assert all(np.isfinite(value) for key, value in values.items() if "iou" not in key)
    (tested,) = run.test(module, module.trainer.datamodule, verbose=False)
    assert tested["test/miou"] > 0


def test_a_student_alone_learns_the_pixels(tmp_path, trainer):
    data = camvid(tmp_path, augment=False)
    module = ClassificationModule(UNet(3, widths=(8, 8)), optimizer=lambda p: torch.optim.Adam(p, 0.02))
    run = trainer(max_epochs=30, limit_train_batches=None, limit_val_batches=None)
    run.fit(module, data)
    assert run.callback_metrics["val/miou"] > 0.8


def test_labels_of_another_shape_and_pairs_of_images_are_refused(tmp_path, trainer):
    data = camvid(tmp_path)
    flat = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    flat(torch.zeros(1, 3, *SIZE))
    with pytest.raises(UserError, match=r"give labels \(B\)"):
        trainer().fit(ClassificationModule(flat), data)
    module = DistillationModule(UNet(3, (4, 8)), UNet(3, (4, 8)), teacher_cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="views can be counted"):
        trainer().fit(module, data)


def test_an_audit_counts_labelled_pixels(tmp_path):
    data = camvid(tmp_path, augment=False)
    module = DistillationModule(UNet(3, (4, 8)), Coarse(), bias=by_gamma("drop", "batch", "ramp", trust="class"))
    report = audit(module, data)
    batch = data.train_set.pick(torch.arange(6))
    logits = F.interpolate(module.teacher(data.normalized(batch.image)).logits, SIZE, mode="bilinear")
    labels = batch.target.long()
    right = logits.gather(1, labels.clamp_max(2).unsqueeze(1)).squeeze(1) == logits.amax(1)  # a tie is right
    wrong = ~right & (labels != 255)
    assert report.views == 6 * 16 * 11
    assert report.wrong == int(wrong.sum())
    assert [row.name for row in report.classes] == CLASSES
    report.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.json", "audit.png", "audit.txt", "maps.png"}
    assert "maps" not in json.loads((tmp_path / "out" / "audit.json").read_text())


def test_an_exported_student_gives_the_same_map(tmp_path):
    network = UNet(3, (4, 8)).eval()
    spec = InputSpec([0.5] * 3, [0.2] * 3, size=SIZE)
    export_student(network, str(tmp_path / "student.onnx"), spec)
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    image = torch.randn(3, 3, *SIZE)
    (found,) = session.run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(image), atol=1e-5, rtol=1e-4)


def test_a_comparison_chooses_by_mean_iou(tmp_path, monkeypatch):
    camvid(tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    unet = {"class_path": "lightning_biaskd.models.UNet", "init_args": {"num_classes": 3, "widths": [4, 8]}}
    init_args = {"student": unet, "teacher": unet}
    data = {"root": "scenes", "batch_size": 2, "classes": CLASSES, "size": list(SIZE)}
    run = {
        "data": {"class_path": "SegmentationFolderDataModule", "init_args": data},
        "model": {"class_path": "DistillationModule", "init_args": init_args},
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }
    Path("run.yaml").write_text(yaml.safe_dump(run))
    matrix = {"base": ["run.yaml"], "axes": {"bias": {"none": "configs/bias/none.yaml"}}, "seeds": [0]}
    Path("matrix.yaml").write_text(yaml.safe_dump(matrix))
    with pytest.raises(SystemExit) as ended:
        main(["compare", "-c", "matrix.yaml", "--output", "out"])
    assert not ended.value.code
    (row,) = csv.DictReader(Path("out/results.csv").read_text().splitlines())
    (path,) = Path("out").rglob("result.json")
    found = json.loads(path.read_text())
    assert float(row["miou_last"]) == found["last"]["miou"]
    assert float(row["teacher_miou"]) == found["last"]["teacher_miou"]
    assert float(row["val_miou_last"]) == list(found["validation"].values())[-1]
    assert "acc1_last" not in row
    (metrics,) = Path("out").rglob("metrics.csv")
    logged = [line["val/miou"] for line in csv.DictReader(metrics.read_text().splitlines()) if line["val/miou"]]
    assert [float(value) for value in logged] == list(found["validation"].values())


def test_the_table_shows_pixels_and_mean_iou(tmp_path, trainer, capsys):
    data = camvid(tmp_path)
    module = DistillationModule(UNet(3, (4, 8)), UNet(3, (4, 8)))
    (tested,) = trainer(callbacks=[ResultTable()]).test(module, data, verbose=False)
    cells = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    lines = {name.strip(): numbers for _, name, *numbers in cells}
    assert float(lines["mean IoU [%]"][0]) == pytest.approx(100 * tested["test/miou"], abs=0.006)
    assert float(lines["mean IoU [%]"][1]) == pytest.approx(100 * tested["test/teacher_miou"], abs=0.006)
    assert {"pixel accuracy [%]", "mean IoU near boundaries [%]", "pixels only it gets right"} <= lines.keys()


def test_a_teacher_that_ends_in_a_softmax_is_told(tmp_path, trainer):
    teacher = nn.Sequential(UNet(3, (4, 8)), nn.Softmax(1))
    with pytest.warns(match="look like probabilities"):
        trainer().test(DistillationModule(UNet(3, (4, 8)), teacher), camvid(tmp_path), verbose=False)


def _a_rank(rank, folder):
    with process_group(rank, 2, folder):
        torch.save(_gradient(slice(2 * rank, 2 * rank + 2)), f"{folder}/{rank}.pt")


def _gradient(own):
    torch.manual_seed(0)
    image, target = torch.randn(4, 3, *SIZE, dtype=torch.float64), torch.randint(3, (4, *SIZE))
    target[:2, 2:] = 255  # the first rank has few labels
    module = ClassificationModule(nn.Conv2d(3, 3, 1).double(), ignore_index=255)
    module.losses((image[own], target[own]), 0).loss.backward()
    return module.model.weight.grad


def test_a_student_alone_on_two_ranks_with_unequal_labels_is_one(tmp_path):
    spawn(_a_rank, (str(tmp_path),), 2)
    both = sum(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)) / 2  # as DDP averages
    torch.testing.assert_close(both, _gradient(slice(None)), rtol=1e-12, atol=1e-12)


def test_wrong_pixels_are_marked():
    image = torch.zeros(2, 3, 4, 6)
    image[:, :, 0, 0] = 1.0
    target = torch.zeros(2, 4, 6, dtype=torch.long)
    target[0, 1, 1], target[1, :, 0] = 255, 255
    logits = F.one_hot(torch.zeros(2, 4, 6, dtype=torch.long), 3).movedim(-1, 1).float()
    logits[0, :, 2, 3] = torch.tensor([0.0, 9.0, 0.0])
    figure = draw_maps(image, logits, target, 255, student_logits=logits[..., ::2, ::2])
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[:6] == ["image", "labels", "teacher", "teacher wrong on 4.3%", "student", "student wrong on 0.0%"]
    marked = torch.tensor(figure.axes[3].images[0].get_array())
    coloured = (marked.amax(-1) - marked.amin(-1)) > 0.1
    assert coloured.nonzero().tolist() == [[2, 3]]
    assert marked[1, 1].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(UserError, match="are no maps"):
        draw_maps(image, logits[..., 0, 0], target)
