"""Both decoders give the pixels of torchvision's loader, and evaluation is that of torchvision's weights."""

import importlib.util
import io

import numpy as np
import pytest
import torch
from data_files import write_folders
from PIL import Image
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2

from lightning_biaskd import UserError
from lightning_biaskd.data import ImageNetDataModule, decoding
from lightning_biaskd.data.crops import RandomResizedCrop

torchcodec = pytest.mark.skipif(importlib.util.find_spec("torchcodec") is None, reason="torchcodec isn't installed")
SMOOTH = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).resize((340, 300))
ROTATED = Image.Exif()
ROTATED[0x0112] = 6
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 1


@pytest.fixture(autouse=True)
def _nothing_told():
    decoding._told.clear()


def encoded(image, kind="JPEG", **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


@torchcodec
@pytest.mark.filterwarnings("ignore:.*(orientation in its EXIF|holds several images)")
@pytest.mark.parametrize(
    ("content", "tensor"),
    [
        (encoded(SMOOTH), True),
        (encoded(SMOOTH, quality=40, subsampling=2, progressive=True), True),
        (encoded(SMOOTH.convert("L")), True),
        (encoded(SMOOTH.convert("CMYK")), True),
        (encoded(SMOOTH) + b"more", True),
        (encoded(SMOOTH, exif=ROTATED), False),  # torchcodec would turn it
        (encoded(SMOOTH, exif=Image.Exif()), True),
        (encoded(SMOOTH, exif=UPRIGHT, comment=b"x" * 999), True),
        (encoded(SMOOTH, "MPO", save_all=True, append_images=[SMOOTH]), False),
        (encoded(SMOOTH, "PNG"), False),
        (encoded(SMOOTH, "GIF"), False),
    ],
)
def test_torchcodec_gives_the_pixels_of_torchvision(content, tensor):
    found = decoding.decode(content, "x", "torchcodec")
    assert isinstance(found, torch.Tensor) is tensor
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(v2.functional.pil_to_tensor(found) if not tensor else found, expected)


@torchcodec
@pytest.mark.parametrize("content", [encoded(SMOOTH)[:700], encoded(SMOOTH)[:-20], b"", b"404 not found"])
def test_a_damaged_file_is_named_by_either_decoder(content):
    told = []
    for decoder in ("torchcodec", "pillow"):
        with pytest.raises(UserError, match=r"the image 'a/b.jpg' can't be used \([a-z0-9 ()]+\): replace it") as error:
            decoding.decode(content, "a/b.jpg", decoder)
        told.append(str(error.value))
    assert told[0] == told[1]


def test_the_decoder_is_torchcodec_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(decoding.importlib.util, "find_spec", lambda _: object())
    assert [decoding.installed_decoder(name) for name in (None, "pillow")] == ["torchcodec", "pillow"]
    monkeypatch.setattr(decoding.importlib.util, "find_spec", lambda _: None)
    assert decoding.installed_decoder(None) == "pillow"
    with pytest.raises(UserError, match=r"pip install 'lightning-biaskd\[imagenet\]'"):
        decoding.installed_decoder("torchcodec")
    with pytest.raises(UserError, match="choose torchcodec, pillow or null"):
        decoding.installed_decoder("turbojpeg")


def test_a_crop_of_a_tensor_is_torchvisions():
    image = torch.from_numpy(np.array(SMOOTH)).permute(2, 0, 1)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = v2.RandomResizedCrop(64, antialias=True)(image)
        torch.manual_seed(seed)
        assert torch.equal(RandomResizedCrop(64, antialias=True)(image), expected)


@pytest.mark.parametrize("decoder", ["pillow", pytest.param("torchcodec", marks=torchcodec)])
def test_evaluation_sees_what_torchvisions_weights_see(tmp_path, decoder):
    write_folders(tmp_path)
    SMOOTH.save(tmp_path / "val" / "cat" / "0.jpg")
    data = ImageNetDataModule(str(tmp_path), num_workers=0, val_split=0, decoder=decoder, batch_size=9)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    transforms = ResNet18_Weights.IMAGENET1K_V1.transforms()
    files = sorted((tmp_path / "val").rglob("*.jpg"))
    expected = torch.stack([transforms(Image.open(file).convert("RGB")) for file in files])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    torch.testing.assert_close(data.normalized(expected_pixels := (255 * (expected * std + mean)).round()), expected)
    difference = (batch.image - expected_pixels).abs()
    assert difference.max() <= (0 if decoder == "pillow" else 1)
    assert difference.mean() < 0.3


@torchcodec
def test_views_of_both_decoders_differ_by_rounding(tmp_path):
    write_folders(tmp_path)
    views = {}
    for decoder in ("pillow", "torchcodec"):
        data = ImageNetDataModule(str(tmp_path), num_workers=0, val_split=0, decoder=decoder, batch_size=18)
        data.setup()
        views[decoder] = next(iter(data.train_dataloader()))
    assert torch.equal(views["pillow"].index, views["torchcodec"].index)
    assert (views["pillow"].image.int() - views["torchcodec"].image.int()).abs().max() == 1
