import json
from pathlib import Path

import pytest
import torch

from lightning_biaskd import models

ZOO = json.loads((Path(__file__).parents[1] / "reference" / "model_zoo.json").read_text())["models"]
RESNETS = [name for name in models.__all__ if name.startswith("resnet")]


@pytest.mark.parametrize("name", RESNETS)
def test_names_shapes_and_counts_are_those_of_the_published_models(name):
    with torch.device("meta"):
        model = getattr(models, name)()
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == ZOO[name]["keys"]
    assert sum(p.numel() for p in model.parameters()) == ZOO[name]["parameters"]


def test_every_published_depth_is_there():
    assert set(RESNETS) == {name for name in ZOO if name.startswith("resnet")} - {"resnet18", "resnet34", "resnet50"}


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_channels_classes_and_image_size_are_free(size):
    assert models.resnet8(num_classes=7, in_channels=2)(torch.zeros(2, 2, size, size)).shape == (2, 7)


def test_numerics_of_a_block():
    block = models.resnet.BasicBlock(3, 5, stride=2).eval()
    x = torch.randn(2, 3, 8, 8)
    inner = torch.relu(block.bn1(block.conv1(x)))
    torch.testing.assert_close(
        block(x), torch.relu(block.bn2(block.conv2(inner)) + block.downsample[1](block.downsample[0](x)))
    )


def test_an_impossible_depth():
    with pytest.raises(ValueError, match="6n \\+ 2"):
        models.CIFARResNet(depth=10)
