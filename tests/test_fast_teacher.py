import copy
import sys
import warnings

import pytest
import timm
import torch
import torchvision
from tiny import TinyData, network, snapshot, unchanged
from torch import nn
from torch.nn.utils import prune

from lightning_biaskd import DistillationModule, FeatureTap, FrozenTeacher, UserError, models
from lightning_biaskd.teachers.backends import accelerate


def settled(net, size=32, channels=3):
    """A network whose batch norms have statistics and weights of their own."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2, generator=generator)
    return net.eval().requires_grad_(False), torch.randn(4, channels, size, size, generator=generator)


@pytest.mark.parametrize(
    "changed",
    [
        lambda conv: prune.l1_unstructured(conv, "weight", 0.3),
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_a_weight_that_is_computed_is_not_folded(changed):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    changed(net[0])
    net, image = settled(net, size=8)
    folded = accelerate(FeatureTap(net), image)
    torch.testing.assert_close(folded(image).logits, net(image), rtol=1e-5, atol=1e-5)
    assert norms(folded.model) == 1


def norms(model):
    """How many batch norms still compute."""
    return sum(isinstance(module, nn.BatchNorm2d) and "forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (models.resnet8x4, 0),
        (models.vgg8, 0),
        (models.mobilenet_v2_half, 0),
        (models.shufflenet_v2, 0),
        (models.wrn_16_1, 7),  # those that read a sum, or a stem that a shortcut reads too
        (torchvision.models.resnet18, 0),
        (lambda: timm.create_model("resnet10t"), 0),
    ],
)
def test_batch_norms_are_folded_and_logits_stay(build, left):
    net, image = settled(build())
    before, expected = snapshot(net), net(image)
    fast = accelerate(FeatureTap(net), image)
    assert unchanged(before, net)
    assert norms(fast.model) == left < norms(net)
    torch.testing.assert_close(fast(image).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert fast.model.state_dict().keys() >= before.keys()


def test_features_are_those_of_the_network_itself():
    net, image = settled(models.resnet8())
    layers = ["-2", "-1:pre", "layer1.0.bn1", "layer1.0.conv2"]
    plain = FeatureTap(copy.deepcopy(net), layers, embedding=True)(image)
    fast = accelerate(FeatureTap(net, layers, embedding=True), image)
    for _ in range(2):
        outputs = fast(image)
        for name in layers:
            torch.testing.assert_close(outputs.features[name], plain.features[name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.embedding, plain.embedding, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.head(outputs.embedding), outputs.logits)
    assert norms(fast.model) == 1  # that whose convolution is read


def test_a_feature_that_a_module_around_the_convolution_returns_is_the_networks_own():
    net, image = settled(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1)))
    plain = net[0](image)
    fast = accelerate(FeatureTap(net, ["0"]), image)
    torch.testing.assert_close(fast(image).features["0"], plain)
    assert norms(fast.model) == 1


class Twice(nn.Module):
    """Reads a convolution's output twice, once where nobody sees it, so that nothing may be folded into it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, image):
        out = self.conv(image)
        return self.fc((self.bn(out) + out).mean((2, 3)))


def test_what_cannot_be_folded_is_found_out():
    net, image = settled(Twice())
    with pytest.warns(UserWarning, match=r"moved its logits by .*, so they aren't folded"):
        fast = accelerate(FeatureTap(net), image)
    assert fast.model is net
    torch.testing.assert_close(fast(image).logits, net(image))


@pytest.mark.parametrize("backend", ["plain", "fast", "compile"])
def test_half_precision_is_within_its_tolerance(backend):
    net, image = settled(models.resnet8())
    expected = net(image)
    teacher = FrozenTeacher(net, backend=backend, precision="bf16")
    if backend == "compile":
        teacher.backend = "fast"  # as compiling for real takes long: see below
    logits = teacher(image).logits
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()
    assert (logits != expected).any()
    assert net.fc.weight.dtype == torch.float32


def test_full_precision_holds_under_autocast():
    net, image = settled(models.resnet8())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = FrozenTeacher(net, precision="32")(image).logits
        follows = FrozenTeacher(net)(image).logits
    torch.testing.assert_close(exact, net(image), rtol=1e-4, atol=1e-4)
    assert follows.dtype == torch.bfloat16


def test_compiled_logits_agree():
    net, image = settled(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), 8
    )
    net(image)
    teacher = FrozenTeacher(net, backend="compile")
    for size in (4, 4, 3):
        torch.testing.assert_close(teacher(image[:size]).logits, net(image[:size]), rtol=1e-4, atol=1e-4)


def test_onnx_runtime_answers_for_the_network():
    net, image = settled(models.resnet8())
    teacher = FrozenTeacher(net, backend="onnxruntime")
    for size in (4, 3):
        torch.testing.assert_close(teacher(image[:size]).logits, net(image[:size]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kwargs", [{"layers": ["-1"]}, {"embedding": True}, {"precision": "bf16"}])
def test_onnx_runtime_refuses_what_it_cannot_do(kwargs):
    net, image = settled(models.resnet8())
    with pytest.raises(UserError, match="gives logits alone, in float32, on the CPU"):
        FrozenTeacher(net, backend="onnxruntime", **kwargs)(image)


def test_without_onnx_runtime_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    net, image = settled(models.resnet8())
    with pytest.raises(UserError, match=r"pip install 'lightning-biaskd\[export\]'"):
        FrozenTeacher(net, backend="onnxruntime")(image)


def test_a_teacher_that_moves_is_prepared_anew():
    net, image = settled(models.resnet8())
    teacher = FrozenTeacher(net)
    first = teacher(image).logits
    teacher.double()
    assert teacher(image.double()).logits.dtype == torch.float64
    torch.testing.assert_close(teacher.float()(image).logits, first)


def test_the_module_hands_its_choice_to_the_teacher(trainer):
    nets = network(), network()
    assert DistillationModule(*nets).teacher.backend == "fast"
    module = DistillationModule(nets[0], FrozenTeacher(nets[1], backend="plain", precision="bf16"))
    assert (module.teacher.backend, module.teacher.precision) == ("plain", "bf16")
    module = DistillationModule(*nets, teacher_backend="onnxruntime")
    before = snapshot(nets[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer().fit(module, TinyData())
    assert unchanged(before, nets[1])
