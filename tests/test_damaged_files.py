"""Damaged weights and checkpoints: the same values or one line, never code, never a hang."""

import random

import pytest
import torch
from safetensors.torch import save_file
from tiny import network, snapshot, unchanged

from lightning_biaskd import UserError, load_weights
from lightning_biaskd.training.checkpoint import DurableCheckpointIO


def written(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        content = {"state_dict": state, "epoch": 3} if path.suffix == ".ckpt" else state
        torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".th")
    return path.read_bytes()


def damaged(content, draw, kind):
    content, place = bytearray(content), draw.randrange(len(content))
    if kind == "cut":
        return content[:place]
    if kind == "flipped":
        content[place] ^= 1 << draw.randrange(8)
    else:  # two stretches swapped
        size = draw.choice([4, 64])
        first, second = sorted(draw.sample(range(0, len(content) - size, size), 2))
        content[first : first + size], content[second : second + size] = (
            content[second : second + size],
            content[first : first + size],
        )
    return content


def tried(path, content, load):
    path.write_bytes(content)
    line = ""
    try:
        load()
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    return not line


@pytest.mark.parametrize("kind", ["cut", "flipped", "swapped"])
@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w.th", "w.safetensors"])
def test_weights(tmp_path, name, kind):
    draw, source, path = random.Random(f"{name} {kind}"), network(), tmp_path / name
    content, target = written(path, source.state_dict()), network()
    before = snapshot(source)
    for _ in range(80):
        loaded = tried(path, damaged(content, draw, kind), lambda: load_weights(target, path))
        if loaded and (kind == "cut" or name in ("w.pt", "w.ckpt")):  # other formats have no checksums
            assert unchanged(before, target)


@pytest.mark.filterwarnings("ignore:.*is passed over")
@pytest.mark.parametrize("kind", ["cut", "flipped", "swapped"])
def test_checkpoints(tmp_path, kind):
    draw, source, path = random.Random(kind), network(), tmp_path / "run.ckpt"
    content, seen = written(path, source.state_dict()), {}
    for _ in range(80):
        if tried(path, damaged(content, draw, kind), lambda: seen.update(DurableCheckpointIO().load_checkpoint(path))):
            assert all(torch.equal(seen["state_dict"][name], value) for name, value in snapshot(source).items())
