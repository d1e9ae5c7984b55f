"""Class folders: what is in them, what their files hold, and what is said where either is odd."""

import warnings

import numpy as np
import pytest
import torch
from data_files import write_folders
from PIL import Image
from torchvision.datasets import ImageFolder

from lightning_biaskd import UserError
from lightning_biaskd.__main__ import main
from lightning_biaskd.data import ImageNetDataModule, decoding

RAMP = np.linspace(0, 65535, 1600).reshape(40, 40).astype(np.uint16)
COLOUR = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)


@pytest.fixture(autouse=True)
def _nothing_told():
    decoding._told.clear()


def data(root, **kwargs):
    return ImageNetDataModule(str(root), **{"val_split": 0, "num_workers": 0, "image_size": 32, **kwargs})


def opened(root, **kwargs):
    module = data(root, **kwargs)
    module.setup()
    return module


def pixels(tmp_path, image, name="x.png", **kwargs):
    image.save(tmp_path / name, **kwargs)
    return np.asarray(decoding.decoded(tmp_path / name))


def torchvisions(path):
    """The pixels that torchvision's loader gives."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    found = pixels(tmp_path, Image.fromarray(RAMP), name)
    assert found.shape == (40, 40, 3)
    assert np.abs(found[..., 0] - RAMP / 257).max() <= 0.5


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_other_kinds_of_pixels_are_those_of_torchvision(tmp_path, mode):
    found = pixels(tmp_path, Image.fromarray(COLOUR).convert(mode), "x.tif")
    assert np.array_equal(found, torchvisions(tmp_path / "x.tif"))
    assert len(np.unique(found)) > 1


def palette_with_alpha(image):
    image = image.convert("P")
    image.info["transparency"] = bytes(range(256))
    return image


FRAMES = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
ROTATED = Image.Exif()
ROTATED[0x0112] = 6


@pytest.mark.parametrize(
    ("image", "name", "kwargs", "told"),
    [
        (Image.fromarray(np.dstack([COLOUR, COLOUR[..., 0]])), "x.png", {}, "transparent pixels"),
        (Image.fromarray(COLOUR[..., :2]), "x.png", {}, "transparent pixels"),
        (palette_with_alpha(Image.fromarray(COLOUR)), "x.png", {}, "transparent pixels"),
        (FRAMES[0], "x.gif", {"save_all": True, "append_images": FRAMES[1:]}, "several images; the first"),
        (FRAMES[0], "x.webp", {"save_all": True, "append_images": FRAMES[1:]}, "several images; the first"),
        (Image.fromarray(COLOUR), "x.jpg", {"exif": ROTATED}, "an orientation in its EXIF data"),
    ],
)
def test_what_is_lost_is_told_once(tmp_path, image, name, kwargs, told):
    with pytest.warns(UserWarning, match=f"{name}' .*{told}"):
        found = pixels(tmp_path, image, name, **kwargs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images")
        assert np.array_equal(found, torchvisions(tmp_path / name))
    pixels(tmp_path, image, f"again_{name}", **kwargs)


def test_opaque_images_lose_nothing(tmp_path):
    pixels(tmp_path, Image.fromarray(COLOUR).convert("RGBA"))


@pytest.mark.parametrize("image", [Image.fromarray(RAMP / np.float32(65535)), Image.fromarray(RAMP.astype(np.int32))])
def test_pixels_of_unknown_range_are_refused(tmp_path, image):
    with pytest.raises(UserError, match=r"x.tif' can't be used \(its pixels are 32-bit numbers"):
        pixels(tmp_path, image, "x.tif")


def damaged(path, fault):
    content = path.read_bytes()
    if fault == "a bomb":
        Image.new("1", (20_000, 20_000)).save(path, "PNG")
    else:
        path.write_bytes({"cut off": content[:700], "empty": b"", "text": b"404 not found\n" * 9}[fault])


@pytest.mark.parametrize(
    ("fault", "workers"), [("cut off", 0), ("empty", 0), ("text", 0), ("a bomb", 0), ("cut off", 1)]
)
def test_an_unreadable_image_is_one_line_with_its_name(tmp_path, fault, workers):
    write_folders(tmp_path)
    for split in ("train", "val"):
        damaged(tmp_path / split / "dog" / "2.jpg", fault)
    module = opened(tmp_path, num_workers=workers)
    for loader in (module.train_dataloader(), module.test_dataloader()):
        with pytest.raises(UserError, match=r"/dog/2.jpg' can't be used \(.*\): replace it") as error:
            list(loader)
        assert "\n" not in str(error.value)


def test_the_command_line_tells_an_unreadable_image_in_one_line(tmp_path, capfd, monkeypatch):
    write_folders(tmp_path)
    damaged(tmp_path / "train" / "dog" / "2.jpg", "cut off")
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "-c", "configs/data/imagenet.yaml", "--data.root", str(tmp_path), "--data.val_split", "0"]
    arguments += ["--data.image_size", "32", "--data.num_workers", "1", "--model", "ClassificationModule"]
    arguments += ["--model.model", "lightning_biaskd.models.resnet8", "--model.model.num_classes", "3"]
    arguments += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--trainer.enable_progress_bar", "false"])
    told = capfd.readouterr().err.strip().splitlines()
    assert end.value.code == 1
    assert "dog/2.jpg' can't be used" in told[-1]
    assert not any("Traceback" in line for line in told)


def test_files_are_those_of_torchvision_in_its_order(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "dog" / "more" / "deep").mkdir(parents=True)
    (tmp_path / "train" / "dog" / "0.jpg").rename(tmp_path / "train" / "dog" / "more" / "deep" / "0.JPG")
    for hidden in ("._1.jpg", ".DS_Store"):
        (tmp_path / "train" / "cat" / hidden).write_bytes(b"\0\5\26\7")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    found = opened(tmp_path).train_set.dataset.images.found
    usual = ImageFolder(
        str(tmp_path / "train"),
        is_valid_file=lambda path: path.lower().endswith("g") and "._" not in path,
        allow_empty=True,
    )
    assert list(zip(found.paths, found.labels, strict=True)) == [
        (path, found.classes.index(usual.classes[label])) for path, label in usual.samples
    ]
    assert found.classes == ["cat", "dog", "eel"]


def test_images_of_other_kinds_are_counted(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "cat" / "x.svg").touch()
    with pytest.warns(UserWarning, match="are left out: 1 .svg"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("classes", "text", "counted", "outputs"),
    [
        (("0", "1", "2", "10", "11"), "0, 1, 10, 11, 2", "0, 1, 2, 10, 11", "0, 1, 3, 4, 2"),
        (("class 9", "class 10"), "class 10, class 9", "class 9, class 10", "1, 0"),
        (("cat", "Dog"), "Dog, cat", "cat, Dog", "1, 0"),
    ],
)
def test_both_orders_of_classes_are_told_where_they_differ(tmp_path, classes, text, counted, outputs):
    write_folders(tmp_path, classes)
    with pytest.warns(UserWarning, match="names of the class folders as text") as told:
        module = opened(tmp_path)
    assert f"as text: {text}. Counted, their order is {counted}." in str(told[0].message)
    assert f"[{outputs}]" in str(told[0].message)
    assert list(module.class_names) == sorted(classes)


@pytest.mark.parametrize("classes", [("00", "01", "10"), ("n01440764", "n01443537"), ("a", "b")])
def test_names_of_one_order_are_not_warned_of(tmp_path, classes):
    write_folders(tmp_path, classes)
    opened(tmp_path)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/cat/loop", "train"),
        ("train/cat/loop", "train/cat"),
        ("train/dog/again", "train/cat"),
        ("train/fox", "train/cat"),
    ],
)
def test_folders_are_read_once(tmp_path, link, target):
    write_folders(tmp_path)
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=r"is a link to '.*', whose images would be counted twice: remove the link"):
        opened(tmp_path)


def test_two_loops_end(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "cat" / "x").symlink_to(tmp_path / "train" / "dog")
    (tmp_path / "train" / "dog" / "y").symlink_to(tmp_path / "train" / "cat")
    with pytest.raises(UserError, match="remove the link"):
        opened(tmp_path)


def test_links_elsewhere_are_followed(tmp_path):
    write_folders(tmp_path / "real")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in ("cat", "dog", "eel"):
            (tmp_path / split / name).symlink_to(tmp_path / "real" / split / name)
    itself = tmp_path / "train" / "itself"
    itself.symlink_to(itself)
    assert len(opened(tmp_path).train_set) == 18


def test_class_folders_that_differ_or_are_empty_are_named(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "val" / "eel").rename(tmp_path / "val" / "fox")
    with pytest.raises(UserError, match="different class folders: eel is missing in '.*/val'; make them the same"):
        opened(tmp_path)
    (tmp_path / "val" / "eel").mkdir()
    with pytest.raises(UserError, match="'.*val/eel' holds no image: add images or remove the folder"):
        opened(tmp_path)
    for name in ("cat", "dog", "eel", "fox"):
        (tmp_path / "val" / name).rename(tmp_path / name)
    with pytest.raises(UserError, match="no class folders in '.*/val': each class needs a folder"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["words.txt", "LOC_synset_mapping.txt"])
def test_classes_have_readable_names_where_a_file_tells_them(tmp_path, name):
    write_folders(tmp_path, ("n01440764", "n02012849", "n03126707", "n09999999"))
    separator = "\t" if name == "words.txt" else " "
    lines = ["n01440764", "tench, Tinca tinca"], ["n02012849", "crane"], ["n03126707", "crane"], ["n00000001", "entity"]
    (tmp_path / name).write_text("".join(f"{separator.join(line)}\n" for line in lines))
    assert opened(tmp_path).class_names == ["tench", "crane (n02012849)", "crane (n03126707)", "n09999999"]


def test_the_centre_crop_follows_the_image_size(tmp_path):
    write_folders(tmp_path)
    whole = Image.new("RGB", (64, 64), "white")
    whole.paste("black", (8, 8, 56, 56))
    for path in tmp_path.glob("val/*/*.jpg"):
        whole.save(path)
    image, *_ = opened(tmp_path, image_size=64).test_set[0]
    white = (image.float().mean(0) > 128).float().mean()
    assert white == pytest.approx(1 - (48 * 73 / 64) ** 2 / 64**2, abs=0.03)  # of 64/73 of the side
    with pytest.warns(UserWarning, match="sees only the centre 6% of a square image; leave resize out for 73"):
        data(tmp_path, image_size=64, resize=256)
    for size, resize in ((64, 60), (0, None)):
        with pytest.raises(UserError, match="choose resize not below image_size, or null"):
            data(tmp_path, image_size=size, resize=resize)


def test_loaders_and_normalisation_take_the_users_numbers(tmp_path):
    write_folders(tmp_path)
    module = opened(tmp_path, batch_size=4, drop_last=True, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert [len(batch.image) for batch in module.train_dataloader()] == [4] * 4  # of 18
    assert sum(len(batch.image) for batch in module.test_dataloader()) == 9
    torch.testing.assert_close(module.normalized(torch.full((1, 3, 2, 2), 255.0)), torch.full((1, 3, 2, 2), 2.0))
    assert data(tmp_path, num_workers=2, prefetch_factor=3).loader([0]).prefetch_factor == 3
    with pytest.raises(UserError, match="drop_last leaves no batch: a process has 18 training images"):
        opened(tmp_path, drop_last=True).train_dataloader()
    for mean, std in (((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), ((0.5,), (0.5,)), ((0.5,) * 3, (0.5, 0.5, 0))):
        with pytest.raises(UserError, match="give three numbers each, of pixels in"):
            data(tmp_path, mean=mean, std=std)
