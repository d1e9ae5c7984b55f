import json
from pathlib import Path

import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch import nn

from lightning_biaskd import models
from lightning_biaskd.models.resnet import BasicBlock
from lightning_biaskd.models.shufflenet_v1 import channel_shuffle

REFERENCE = Path(__file__).parents[1] / "reference"
ZOO = json.loads((REFERENCE / "model_zoo.json").read_text())["models"]
LOGITS = json.loads((REFERENCE / "model_zoo_logits.json").read_text())["models"]
ELSEWHERE = {"cifar_stem", "faster_rcnn", "from_pretrained", "load_weights", "torchvision_cifar_resnet"}
PUBLISHED = sorted(name for name in models.__all__ if name.islower() and name not in ELSEWHERE)


def noise(size, start):
    """Numbers in [-½, ½] by integer arithmetic alone, the same on every machine."""
    k = torch.arange(start, start + size)
    return (k * k * 7919 + k * 104729) % 10007 / torch.tensor(10006.0, dtype=torch.float64) - 0.5


def fill(model):
    """Sets each parameter and buffer by a formula that keeps the signal's size about equal through the layers."""
    model.double()
    for start, (name, value) in enumerate(model.state_dict().items()):
        drawn = noise(value.numel(), 1000 * start).reshape(value.shape)
        if value.ndim > 1:
            drawn = drawn * (24 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            drawn = 1 + drawn
        value.copy_(drawn if value.is_floating_point() else torch.zeros_like(value))


def image(size=32):
    return 4 * noise(2 * 3 * size * size, 7).reshape(2, 3, size, size)


def test_every_published_model_is_there_and_no_other():
    assert set(PUBLISHED) == set(ZOO) == set(LOGITS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_counts_are_those_of_the_published_models(name):
    with torch.device("meta"):
        model = getattr(models, name)()
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == ZOO[name]["keys"]
    assert sum(p.numel() for p in model.parameters()) == ZOO[name]["parameters"]


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_numerics_are_those_of_the_published_models(name):
    """The logits are what the code of the published models gave (RepDistiller), filled and fed in the same way."""
    with torch.device("meta"):
        model = getattr(models, name)()
    model = model.to_empty(device="cpu")
    fill(model)
    evaluated = model.eval()(image())[:, :3].flatten().tolist()
    trained = model.train()(image())[:, :3].flatten().tolist()
    assert evaluated == pytest.approx(LOGITS[name]["eval"], rel=1e-7, abs=1e-7)
    assert trained == pytest.approx(LOGITS[name]["train"], rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("name", PUBLISHED)
def test_channels_classes_and_image_size_are_free(name):
    with torch.device("meta"):
        model = getattr(models, name)(num_classes=7, in_channels=2)
        for size in [(8, 8), (28, 28), (32, 48), (64, 64), (96, 96)]:
            assert model(torch.zeros(2, 2, *size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mobilenet_v2_half", "resnet8", "shufflenet_v1", "shufflenet_v2", "vgg8", "wrn_16_1"])
def test_a_fresh_model_learns_and_the_image_stays_as_it_was(name):
    model, x = getattr(models, name)(num_classes=5), torch.randn(4, 3, 16, 16)
    before = x.clone()
    logits = model(x)
    assert logits.isfinite().all()
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(x, before)


def test_numerics_of_a_block():
    block = BasicBlock(3, 5, stride=2).eval()
    x = torch.randn(2, 3, 8, 8)
    inner = torch.relu(block.bn1(block.conv1(x)))
    torch.testing.assert_close(
        block(x), torch.relu(block.bn2(block.conv2(inner)) + block.downsample[1](block.downsample[0](x)))
    )


def test_shortcuts_without_parameters():
    model = models.resnet8(10, shortcut="A").eval()
    names = [name for name in model.state_dict() if "bn" not in name]
    assert names[0] == "conv1.weight"
    assert names[-2:] == ["linear.weight", "linear.bias"]
    assert not any("downsample" in name for name in names)
    x = torch.randn(2, 16, 8, 8)
    shortcut = model.layer2[0].downsample(x)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert shortcut.shape == (2, 32, 4, 4)
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="shortcut must be 'A'"):
        models.resnet8(shortcut="C")


def test_a_shuffle_of_channels():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@torch.no_grad()
def test_vgg_pools_after_the_fourth_block_from_64_rows_on():
    model = models.vgg8().eval()
    seen = []
    model.block4.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-1]))
    for size in (8, 32, 64):
        model(torch.zeros(1, 3, size, size))
    assert seen == [1, 4, 4]


def test_an_impossible_depth():
    with pytest.raises(ValueError, match="6n \\+ 2"):
        models.CIFARResNet(depth=10)
    with pytest.raises(ValueError, match="6n \\+ 4"):
        models.WideResNet(depth=20)


@torch.no_grad()
def test_a_stem_for_small_images():
    model = models.cifar_stem(torchvision.models.resnet18(num_classes=4), in_channels=1).eval()
    seen = []
    model.layer1.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[-2:]))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    assert seen == [(32, 32)]


def test_torchvision_by_name_keeps_all_weights_but_stem_and_classifier(monkeypatch):
    torch.manual_seed(0)
    published = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    model = models.torchvision_cifar_resnet("resnet18", num_classes=7, in_channels=2, weights="IMAGENET1K_V1")
    state = model.state_dict()
    assert list(state) == list(published)
    changed = [name for name, value in state.items() if value.shape != published[name].shape]
    assert changed == ["conv1.weight", "fc.weight", "fc.bias"]
    assert all(torch.equal(state[name], value) for name, value in published.items() if name not in changed)
    with pytest.raises(ValueError, match="'vgg11' is a VGG"):
        models.torchvision_cifar_resnet("vgg11")


def test_torchvision_by_name_in_yaml():
    parser = ArgumentParser()
    parser.add_argument("--model", type=nn.Module)
    path = "lightning_biaskd.models.torchvision_cifar_resnet"
    arguments = {"class_path": path, "init_args": {"name": "resnet18", "num_classes": 3, "in_channels": 1}}
    model = parser.instantiate_classes(parser.parse_object({"model": arguments})).model
    assert (model.conv1.in_channels, model.conv1.stride, model.fc.out_features) == (1, (1, 1), 3)


def test_mobilenet_v1_is_the_published_one():
    """Names of mdistiller's checkpoint; the logits are the network's, written out once more by hand."""
    model = models.MobileNetV1(num_classes=7).double().eval()
    fill(model)
    state = model.state_dict()
    assert list(state)[:2] == ["model.0.0.weight", "model.0.1.weight"]
    assert list(state)[-2:] == ["fc.weight", "fc.bias"]

    def activated(x, conv, norm, stride, groups=1):
        weight = state[f"model.{conv}.weight"]
        x = nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        return torch.relu(nn.functional.batch_norm(x, *(state[f"model.{norm}.{name}"] for name in names)))

    x = activated(image(64), "0.0", "0.1", 2)
    for number, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), 1):
        x = activated(x, f"{number}.0", f"{number}.1", stride, groups=x.shape[1])
        x = activated(x, f"{number}.3", f"{number}.4", 1)
    assert x.shape == (2, 1024, 2, 2)
    expected = x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(image(64)), expected, rtol=1e-10, atol=1e-10)


def test_its_weights_load_by_name(tmp_path):
    saved, fresh = models.MobileNetV1(num_classes=3), models.MobileNetV1(num_classes=3)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in saved.state_dict().items()}}, tmp_path / "a.pt"
    )
    models.load_weights(fresh, str(tmp_path / "a.pt"))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in saved.state_dict().items())
