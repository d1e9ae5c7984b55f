"""Small files in the true on-disk format of each data set."""

import gzip
import hashlib
import pickle

import numpy as np
from PIL import Image


def write_idx(folder, pack=True, classes=10, sizes=(40, 20)):
    """Small files in the true format of Fashion-MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, size in zip(("train", "t10k"), sizes, strict=True):
        image = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        target = (np.arange(size) % classes).astype(np.uint8)
        for kind, array in (("images-idx3", image), ("labels-idx1", target)):
            header = np.array([0x0800 + array.ndim, *array.shape], ">i4").tobytes()
            content = header + array.tobytes()
            path = folder / f"{name}-{kind}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(content) if pack else content)


def write_cifar(folder, monkeypatch, module):
    """Small files in the true format of CIFAR, whose checksums torchvision is told."""
    files = module.files
    base = folder / files.base_folder
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    key = "fine_labels" if module.num_classes == 100 else "labels"
    for attribute in ("train_list", "test_list"):
        told = []
        for name, _ in getattr(files, attribute):
            labels = rng.integers(0, module.num_classes, 20).tolist()
            entry = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), key: labels}
            content = pickle.dumps(entry)
            (base / name).write_bytes(content)
            told.append([name, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(files, attribute, told)
    names = "fine_label_names" if module.num_classes == 100 else "label_names"
    content = pickle.dumps({names: [str(i) for i in range(module.num_classes)]})
    (base / files.meta["filename"]).write_bytes(content)
    monkeypatch.setattr(files, "meta", {**files.meta, "md5": hashlib.md5(content).hexdigest()})


def write_folders(folder, classes=("cat", "dog", "eel"), sizes=(6, 3)):
    rng = np.random.default_rng(0)
    for split, size in zip(("train", "val"), sizes, strict=True):
        for name in classes:
            path = folder / split / name
            path.mkdir(parents=True)
            for i in range(size):
                Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(path / f"{i}.jpg")
