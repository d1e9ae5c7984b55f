"""Class folders that are decoded once into memory."""

import numpy as np
import pytest
import torch
from data_files import write_folders
from PIL import Image
from tiny import network

from lightning_biaskd import DistillationModule, UserError
from lightning_biaskd.data import ImageFolderDataModule, image_folder


def colour_network():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), network(3))


def test_images_are_decoded_once_and_split(tmp_path):
    write_folders(tmp_path)
    data = ImageFolderDataModule(str(tmp_path), val_split=4, image_size=16, batch_size=5)
    data.setup()
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (14, 4, 9)
    assert data.num_classes == 3
    assert data.class_names == ["cat", "dog", "eel"]
    assert data.test_set.image.shape == (9, 3, 16, 16)
    assert data.test_set.target.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    with Image.open(tmp_path / "val" / "dog" / "1.jpg") as image:  # 50 x 40
        plain = np.asarray(image.resize((16, 20), Image.BILINEAR).crop((0, 2, 16, 18)))
    assert np.abs(data.test_set.image[4].permute(1, 2, 0).numpy().astype(int) - plain).max() <= 1


def test_a_test_folder_is_the_test_set(tmp_path):
    write_folders(tmp_path)
    write_folders(tmp_path / "more", sizes=(1, 2))
    (tmp_path / "more" / "val").rename(tmp_path / "test")
    data = ImageFolderDataModule(str(tmp_path), image_size=8)
    data.setup()
    assert len(data.test_set) == 6


def test_its_views_are_counted_so_that_a_teachers_cache_serves_them(tmp_path, trainer):
    write_folders(tmp_path)
    data = ImageFolderDataModule(str(tmp_path), val_split=2, image_size=6, padding=1, flip=False)
    assert data.view_count == 9
    assert ImageFolderDataModule(image_size=32).view_count == 162
    module = DistillationModule(colour_network(), colour_network(), teacher_cache=str(tmp_path / "cache"))
    trainer(max_epochs=2).fit(module, data)
    batch = data.train_set.__getitems__([0, 3])
    view = torch.tensor([4, 9])
    assert torch.equal(data.numbered_images(data.train_set.index[[0, 3]], view), data.normalized(batch.image))


def test_what_is_wrong_is_one_line(tmp_path, monkeypatch):
    write_folders(tmp_path)
    monkeypatch.setattr(image_folder, "_free_memory", lambda: 1000)
    with pytest.raises(UserError, match="GiB are free: choose a smaller data.image_size, or ImageNetDataModule"):
        ImageFolderDataModule(str(tmp_path)).setup()
    monkeypatch.undo()
    (tmp_path / "val" / "dog" / "0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="dog/0.jpg' can't be used"):
        ImageFolderDataModule(str(tmp_path)).setup()
    (tmp_path / "val" / "eel").rename(tmp_path / "eel")
    with pytest.raises(UserError, match="eel is missing in"):
        ImageFolderDataModule(str(tmp_path)).setup()
    for kwargs in ({"padding": -1}, {"resize": 8}, {"mean": (0.5,)}):
        with pytest.raises(UserError):
            ImageFolderDataModule(str(tmp_path), **kwargs)
