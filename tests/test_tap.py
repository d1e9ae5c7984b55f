import copy

import pytest
import timm
import torch
import torchvision
from tiny import CompilationCount, network
from torch import nn

from lightning_biaskd import FeatureTap, Outputs, UserError, models

IMAGE = torch.randn(2, 1, 6, 6)


def test_features_are_those_of_the_layer_and_carry_gradient():
    net = network().eval()
    outputs = FeatureTap(net, ["0", "4"])(IMAGE)
    torch.testing.assert_close(outputs.features["0"], net[0](IMAGE))
    torch.testing.assert_close(outputs.logits, net[5](outputs.features["4"]))
    assert outputs.features["0"].requires_grad


def test_with_nothing_tapped_there_is_no_hook():
    net = network()
    FeatureTap(net)(IMAGE)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_an_unknown_layer_lists_near_names():
    net = nn.Sequential()
    net.add_module("layer1", nn.Linear(2, 2))
    net.add_module("layer2", nn.Linear(2, 2))
    for name in ("layer3", "layer3:pre"):
        with pytest.raises(UserError, match="has no layer 'layer3'; near names: .*layer2"):
            FeatureTap(net, [name])


def test_the_embedding_is_what_the_classifier_reads():
    net = network()
    outputs = FeatureTap(net, ["4"], embedding=True)(IMAGE)
    assert outputs.head is net[5]
    assert outputs.embedding is outputs.features["4"]
    torch.testing.assert_close(outputs.head(outputs.embedding), outputs.logits)
    assert FeatureTap(net)(IMAGE).head is None


class Open(nn.Module):
    """Hands out its own parts."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 3)

    def forward(self, image):
        x = image.flatten(1)
        return Outputs(2 * self.fc(x), {"mine": x}, x, lambda x: 2 * self.fc(x))


def test_a_network_that_says_what_its_parts_are_is_believed():
    net = Open()
    outputs = FeatureTap(net, ["fc"], embedding=True)(IMAGE)
    assert set(outputs.features) == {"mine", "fc"}
    torch.testing.assert_close(outputs.head(outputs.embedding), outputs.logits)


def test_a_network_without_a_classifier_is_one_line():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Softplus())
    with pytest.raises(UserError, match=r"no layer of Sequential gives its logits.*return Outputs\(logits"):
        FeatureTap(net, embedding=True)(IMAGE)


def stages(net, size=32, channels=3, count=3):
    names = [f"-{n}" for n in range(count, 0, -1)]
    outputs = FeatureTap(net, names, embedding=True)(torch.randn(2, channels, size, size))
    return [tuple(outputs.features[name].shape[1:]) for name in names], outputs


@pytest.mark.parametrize(
    ("build", "size", "expected"),
    [
        (models.resnet8x4, 32, [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
        (models.wrn_16_1, 32, [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        (models.vgg8, 32, [(128, 16, 16), (256, 8, 8), (512, 4, 4)]),
        (models.mobilenet_v2_half, 32, [(16, 8, 8), (48, 4, 4), (1280, 2, 2)]),
        (models.shufflenet_v1, 32, [(240, 16, 16), (480, 8, 8), (960, 4, 4)]),
        (models.shufflenet_v2, 32, [(116, 16, 16), (232, 8, 8), (1024, 4, 4)]),
        (models.resnet18, 32, [(128, 16, 16), (256, 8, 8), (512, 4, 4)]),
        (torchvision.models.resnet18, 64, [(128, 8, 8), (256, 4, 4), (512, 2, 2)]),
        (torchvision.models.resnet50, 64, [(512, 8, 8), (1024, 4, 4), (2048, 2, 2)]),
        (torchvision.models.densenet121, 64, [(512, 8, 8), (1024, 4, 4), (1024, 2, 2)]),
        (torchvision.models.mobilenet_v3_small, 64, [(24, 8, 8), (48, 4, 4), (576, 2, 2)]),
        (torchvision.models.vgg11_bn, 64, [(512, 8, 8), (512, 4, 4), (512, 2, 2)]),
        (lambda: timm.create_model("resnet10t"), 64, [(128, 8, 8), (256, 4, 4), (512, 2, 2)]),
        (lambda: timm.create_model("mobilenetv3_small_050"), 64, [(16, 8, 8), (24, 4, 4), (288, 2, 2)]),
    ],
)
def test_stages_and_classifiers_are_found_in_any_network(build, size, expected):
    net = build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    net.eval()
    found, outputs = stages(net, size)
    assert found == expected
    assert isinstance(outputs.head, nn.Linear)
    torch.testing.assert_close(outputs.head(outputs.embedding), outputs.logits)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(modes)


def test_tokens_are_a_stage():
    net = timm.create_model("vit_tiny_patch16_224", img_size=32).eval()
    outputs = FeatureTap(net, ["-1", "blocks.5"], embedding=True)(torch.randn(2, 3, 32, 32))
    assert outputs.features["-1"].shape == outputs.features["blocks.5"].shape == (2, 5, 192)
    torch.testing.assert_close(outputs.head(outputs.embedding), outputs.logits)


def test_too_few_stages_are_one_line():
    with pytest.raises(
        UserError, match=r"CIFARResNet has 3 stages \(layer1, layer2, layer3\), so -4 is not one of them"
    ):
        FeatureTap(models.resnet8(), ["-4"])(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("net", "layer", "size"),
    [
        (models.resnet8(), "layer2", 32),
        (models.resnet8(), "-2", 32),
        (models.vgg8(), "block1", 32),
        (torchvision.models.resnet18(), "layer2", 64),  # overwrites in place, one activation for the whole block
        (timm.create_model("resnet10t"), "layer2", 64),
    ],
)
def test_before_the_activation(net, layer, size):
    net.eval()
    tap = FeatureTap(net, [layer, f"{layer}:pre"])
    outputs = tap(torch.randn(2, 3, size, size))
    before, after = outputs.features[f"{layer}:pre"], outputs.features[layer]
    assert (before < 0).any()
    torch.testing.assert_close(before.relu(), after)


def test_without_an_activation_at_its_end_a_layer_is_taken_as_it_is():
    net = network().eval()
    features = FeatureTap(net, ["1:pre", "1"])(IMAGE).features
    assert torch.equal(features["1:pre"], features["1"])


def test_the_first_call_leaves_a_network_in_training_as_it_was():
    net = models.resnet8()
    net.layer1.eval()
    before = net.bn1.running_mean.clone()
    modes = {module: module.training for module in net.modules()}
    tap = FeatureTap(net, ["-1"])
    tap._resolve(torch.randn(2, 3, 8, 8))
    assert torch.equal(net.bn1.running_mean, before)
    assert modes == {module: module.training for module in net.modules()}


def test_copies_write_into_themselves():
    net = network().eval()
    tap = FeatureTap(net, ["2"], embedding=True)
    tap(IMAGE)
    twin = copy.deepcopy(tap)
    twin.model[0].weight.data.zero_()
    assert not torch.equal(twin(IMAGE).features["2"], tap(IMAGE).features["2"])
    assert twin(IMAGE).head is twin.model[5]


def test_compiles_without_a_break():
    net = models.resnet8().eval()
    tap = FeatureTap(net, ["-2", "-1:pre"], embedding=True)
    image = torch.randn(2, 3, 8, 8)
    expected = tap(image)
    count = CompilationCount()

    @torch.compile(backend=count, fullgraph=True)
    def compiled(image):
        outputs = tap(image)
        return outputs.logits, outputs.features, outputs.embedding

    for _ in range(2):
        logits, features, embedding = compiled(image)
        torch.testing.assert_close((logits, dict(features), embedding), tuple(expected[:3]))
    assert count.graphs == 1
