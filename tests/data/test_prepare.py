"""Images stored once in the size that training needs, as folders or shards, and what reads them."""

import importlib.util
import json
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_files import write_folders
from PIL import Image
from processes import process_group, spawn

from lightning_biaskd import UserError
from lightning_biaskd.__main__ import main
from lightning_biaskd.data import ImageNetDataModule
from lightning_biaskd.data import prepare as preparing
from lightning_biaskd.data.litdata_shards import LitdataImages
from lightning_biaskd.data.prepare import prepare

litdata = pytest.mark.skipif(importlib.util.find_spec("litdata") is None, reason="litdata isn't installed")
PREPARED = ["folders", pytest.param("litdata", marks=litdata)]
FORMATS = ["folders", "litdata", "webdataset"]


@pytest.fixture
def source(tmp_path):
    """18 + 9 images of 50 x 40 pixels, of which one is larger and one is no JPEG file."""
    write_folders(tmp_path / "source")
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)).resize((450, 300))
    large.save(tmp_path / "source" / "train" / "dog" / "1.jpg", quality=95)
    large.save(tmp_path / "source" / "train" / "dog" / "large.png")
    (tmp_path / "source" / "words.txt").write_text("cat\ttabby\n")
    return tmp_path / "source"


def opened(root, **kwargs):
    data = ImageNetDataModule(str(root), **{"val_split": 0, "num_workers": 0, "image_size": 32, **kwargs})
    data.setup()
    return data


def contents(images):
    return sorted((content, label) for content, label, _ in (images[index] for index in range(len(images))))


@pytest.mark.parametrize("format", PREPARED)
def test_larger_images_are_scaled_and_others_copied(source, tmp_path, format):
    header = prepare(str(source), str(tmp_path / "out"), format, 100, num_workers=0, shard_size=8)
    assert (header.images, header.classes) == ({"train": 19, "val": 9}, ["cat", "dog", "eel"])
    data = opened(tmp_path / "out", format=format)
    assert data.class_names == ["tabby", "dog", "eel"]
    found = dict(enumerate(contents(data.train_set.dataset.images)))
    before = {path.read_bytes() for path in source.glob("train/*/*") if "large" not in path.name}
    assert sum(content in before for content, _ in found.values()) == 17
    large = [content for content, _ in found.values() if content not in before]
    (tmp_path / "large.jpg").write_bytes(large[0])
    with Image.open(tmp_path / "large.jpg") as image:
        assert (image.size, image.format) == ((150, 100), "JPEG")
    again = prepare(str(source), str(tmp_path / "out"), format, 100, num_workers=0, shard_size=8)
    assert again == header
    with pytest.raises(UserError, match="was begun with another quality: choose another output"):
        prepare(str(source), str(tmp_path / "out"), format, 100, 80, num_workers=0)


@pytest.mark.parametrize("format", PREPARED)
def test_an_interrupted_command_goes_on_and_its_output_is_refused_until_then(source, tmp_path, format, monkeypatch):
    done = []

    class Killed(preparing._Smaller):
        def _smaller(self, content, name):
            if len(done) == 17:
                raise KeyboardInterrupt
            done.append(name)
            return super()._smaller(content, name)

    arguments = (str(source), str(tmp_path / "out"), format, 100)
    with monkeypatch.context() as patched:
        patched.setattr(preparing, "_Smaller", Killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(*arguments, num_workers=0, shard_size=4)
        with pytest.raises(UserError, match="isn't complete: run the same `biaskd prepare` again"):
            opened(tmp_path / "out", format=format)
        done[:] = [f"{number} before" for number in range(-50, 0)]
        prepare(*arguments, num_workers=0, shard_size=4)
    assert len(done) - 50 in (28 - 17, 28 - 16)  # all but what was begun
    assert not list((tmp_path / "out").rglob("*.part"))
    whole = prepare(str(source), str(tmp_path / "whole"), format, 100, num_workers=1, shard_size=4)
    assert whole.images == {"train": 19, "val": 9}
    parts, at_once = (opened(tmp_path / name, format=format) for name in ("out", "whole"))
    assert contents(parts.train_set.dataset.images) == contents(at_once.train_set.dataset.images)


@pytest.mark.parametrize("format", PREPARED)
def test_a_damaged_image_is_named_and_left_out_by_choice(source, tmp_path, format):
    damaged = source / "train" / "eel" / "2.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    arguments = (str(source), str(tmp_path / "out"), format, 100)
    with pytest.raises(UserError, match="eel/2.jpg' can't be used .* or leave it out: --damaged leave_out"):
        prepare(*arguments, num_workers=0, shard_size=4)
    for _ in range(2):  # the second finds all done
        header = prepare(*arguments, num_workers=0, damaged="leave_out", shard_size=4)
        assert header.images == {"train": 18, "val": 9}
        assert ["eel/2.jpg" in reason for reason in header.left_out["train"]] == [True]
    assert len(opened(tmp_path / "out", format=format).train_set) == 18


def test_what_can_not_be_prepared_is_one_line(source, tmp_path, capfd):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for kwargs, told in [
        ({"output": str(tmp_path / "full")}, "isn't empty and holds no prepared images"),
        ({"output": str(source / "small")}, "choose a local folder outside"),
        ({"output": "s3://bucket/x"}, "choose a local folder outside"),
        ({"quality": 0}, "a quality from 1 to 95"),
        ({"source": str(tmp_path / "full")}, "can't be read"),
    ]:
        with pytest.raises(UserError, match=told):
            prepare(**{"source": str(source), "output": str(tmp_path / "out"), **kwargs})
    with pytest.raises(SystemExit) as end:
        main(["prepare", str(tmp_path / "nothing"), str(tmp_path / "out")])
    told = capfd.readouterr().err.strip().splitlines()
    assert end.value.code == 1
    assert len(told) == 1
    assert "nothing/train' can't be read" in told[0]
    main(["prepare", str(source), str(tmp_path / "out"), "--num_workers", "0", "--short_side", "100"])
    assert "19 train and 9 val images of 3 classes are in" in capfd.readouterr().out
    with pytest.raises(UserError, match="another format: set data.format to folders"):
        opened(tmp_path / "out", format="litdata")


def write_tars(source, target, split, size=7):
    """The images of a split as tar files of webdataset."""
    files = sorted((source / split).glob("*/*.jpg"))
    (target / split).mkdir(parents=True)
    for number in range(0, len(files), size):
        with tarfile.open(target / split / f"{number:06}.tar", "w") as shard:
            for place, file in enumerate(files[number : number + size]):
                label = target / "label"
                label.write_text(f"{('cat', 'dog', 'eel').index(file.parent.name)}\n")
                shard.add(file, f"{number + place:06}.jpg")
                shard.add(label, f"{number + place:06}.cls")
    return files


def test_tar_files_of_webdataset_give_what_their_folders_give(source, tmp_path):
    (source / "train" / "dog" / "large.png").unlink()
    files = write_tars(source, tmp_path / "tars", "train")
    write_tars(source, tmp_path / "tars", "val")
    data = opened(tmp_path / "tars", format="webdataset")
    assert (data.num_classes, data.class_names) == (3, ["0", "1", "2"])
    images = data.train_set.dataset.images
    assert [images[index][0] for index in range(len(images))] == [file.read_bytes() for file in files]
    (tmp_path / "tars" / "classes.txt").write_text("cat\ndog\neel\n")
    data = opened(tmp_path / "tars", format="webdataset", num_workers=2, batch_size=5)
    batches, expected = list(data.train_dataloader()), list(opened(source, batch_size=5).train_dataloader())
    assert data.class_names == ["cat", "dog", "eel"]
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch[:3], other[:3], strict=True))
    data, folders = opened(tmp_path / "tars", format="webdataset", views=2), opened(source, views=2)
    numbered = torch.tensor([3, 3, 9]), torch.tensor([0, 1, 2])  # what a cache of the teacher asks for
    assert torch.equal(data.numbered_images(*numbered), folders.numbered_images(*numbered))
    assert data.fingerprint() != folders.fingerprint()


def test_tar_files_without_labels_or_of_other_classes_are_refused(source, tmp_path):
    write_tars(source, tmp_path / "tars", "train")
    with pytest.raises(UserError, match="no .tar files in '.*/val'"):
        opened(tmp_path / "tars", format="webdataset")
    with tarfile.open(tmp_path / "tars" / "train" / "more.tar", "w") as shard:
        shard.add(source / "train" / "cat" / "0.jpg", "bare.jpg")
    with pytest.raises(UserError, match="'bare' in '.*more.tar' has no label: each image needs a .cls file"):
        opened(tmp_path / "tars", format="webdataset")
    (tmp_path / "tars" / "train" / "more.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match="more.tar' can't be read .*: replace it"):
        opened(tmp_path / "tars", format="webdataset")
    (tmp_path / "tars" / "train" / "more.tar").unlink()
    (tmp_path / "tars" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"lie in \[0, 2\], and there are 2 classes"):
        opened(tmp_path / "tars", format="webdataset")


@litdata
def test_shards_of_ones_own_need_a_list_of_classes(source, tmp_path):
    prepare(str(source), str(tmp_path / "out"), "litdata", 100, num_workers=0)
    header = json.loads((tmp_path / "out" / "prepared.json").read_text())
    (tmp_path / "out" / "prepared.json").unlink()
    with pytest.raises(UserError, match="neither a prepared.json nor a classes.txt"):
        opened(tmp_path / "out", format="litdata")
    (tmp_path / "out" / "classes.txt").write_text("\n".join(header["classes"]))
    assert len(opened(tmp_path / "out", format="litdata").train_set) == 19
    (tmp_path / "out" / "classes.txt").write_text("cat\ndog")
    with pytest.raises(UserError, match="has the label 2, and there are 2 classes"):
        list(opened(tmp_path / "out", format="litdata").train_dataloader())
    (tmp_path / "out" / "train" / "index.json").unlink()
    with pytest.raises(UserError, match="can't be read as litdata shards"):
        opened(tmp_path / "out", format="litdata")


@litdata
def test_shards_are_read_from_a_store_as_from_a_folder(source, tmp_path):
    prepare(str(source), str(tmp_path / "out"), "litdata", 100, num_workers=0, shard_size=5)
    local, remote = (
        opened(f"{store}{tmp_path / 'out'}", format="litdata", num_workers=1) for store in ("", "local://")
    )
    assert remote.class_names == ["cat", "dog", "eel"]  # words.txt is only read from a folder
    assert remote.files.fingerprint() == local.files.fingerprint()
    for batch, other in zip(remote.train_dataloader(), local.train_dataloader(), strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch[:3], other[:3], strict=True))


@litdata
def test_workers_open_a_store_one_after_another(source, tmp_path, monkeypatch):
    import litdata

    prepare(str(source), str(tmp_path / "out"), "litdata", 100, num_workers=0)
    inside, most = [], []

    def streaming(folder):
        inside.append(folder)
        time.sleep(0.05)
        most.append(len(inside))
        inside.pop()

    monkeypatch.setattr(litdata, "StreamingDataset", streaming)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    shards = [LitdataImages(f"local://{tmp_path / 'out' / 'train'}", ()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(LitdataImages._dataset, shards))
    assert most == [1, 1, 1, 1]


def batches_of_rank(rank, folder, world):
    """Saves what a rank sees of an epoch, from its beginning and after a batch."""
    with process_group(rank, world, folder):
        for format, done in product(FORMATS, (0, 1)):
            data = opened(folder / format, format=format, num_workers=1, batch_size=6 // world)
            data.trainer = SimpleNamespace(world_size=world, global_rank=rank)
            loader = data.train_dataloader()
            loader.load_state_dict({**loader.state_dict(), "epoch": 1, "batches": done})
            loader.sampler.set_epoch(1)
            batches = [(batch.index, batch.image) for batch in loader]
            torch.save(batches, folder / f"{format}_{world}_{rank}_{done}.pt")


@litdata
def test_two_ranks_see_what_one_sees_of_every_format_also_after_a_resume(tmp_path):
    write_folders(tmp_path / "folders")
    prepare(str(tmp_path / "folders"), str(tmp_path / "litdata"), "litdata", num_workers=0, shard_size=5)
    for split in ("train", "val"):
        write_tars(tmp_path / "folders", tmp_path / "webdataset", split)
    for world in (1, 2):
        (tmp_path / "store").unlink(missing_ok=True)
        spawn(batches_of_rank, (tmp_path, world), world)
    for format in FORMATS:
        one = torch.load(tmp_path / f"{format}_1_0_0.pt")
        assert sorted(torch.cat([index for index, _ in one]).tolist()) == list(range(18))
        for done in (0, 1):
            both = [torch.load(tmp_path / f"{format}_2_{rank}_{done}.pt") for rank in range(2)]
            for (index, image), *parts in zip(one[done:], *both, strict=True):
                indices, images = (torch.cat(values) for values in zip(*parts, strict=True))
                assert sorted(indices.tolist()) == sorted(index.tolist())
                assert torch.equal(images[indices.argsort()], image[index.argsort()])


def test_formats_are_named(source):
    with pytest.raises(UserError, match="choose folders, litdata or webdataset"):
        opened(source, format="ffcv")
    with pytest.raises(UserError, match="is no local folder: copy it, or store the images as litdata"):
        opened("s3://bucket/images")
