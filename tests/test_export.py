import json
import pickle
import sys
import types

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from tiny import CLASSES, network, snapshot, unchanged
from torch import nn

from lightning_biaskd import DistillationModule, InputSpec, Outputs, UserError, export_student, load_student
from lightning_biaskd.distillers import SDD
from lightning_biaskd.models import CIFARResNet, resnet8, shufflenet_v2

SPEC = InputSpec([0.3], [0.4], 8)
ARGUMENTS = {"depth": 8, "num_classes": 5, "in_channels": 1, "widths": [4, 4, 8, 8]}
RESNET = {"class_path": "lightning_biaskd.models.CIFARResNet", "init_args": ARGUMENTS}
FORMATS = ["safetensors", "pt2", "onnx"]


def trained():
    """A network whose statistics are not those of a new one."""
    model = CIFARResNet(**ARGUMENTS).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 1, 8, 8) * 2 + 1)
    return model


def card(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_loaded_back_answers_as_the_network_does(tmp_path, format):
    model = trained()
    path = export_student(model, tmp_path / f"net.{format}", SPEC, model=RESNET)
    assert model.training  # it was a copy that was put in eval mode
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"net.{format}", f"net.{format}.json"]
    loaded = load_student(path, trusted=format == "pt2")
    model.eval()
    for size in (1, 3, 7):
        image = torch.randn(size, 1, 8, 8)
        torch.testing.assert_close(loaded(image), model(image), rtol=0, atol=1e-5)
    assert card(tmp_path / f"net.{format}.json")["max_difference"] <= 1e-5


def test_onnx_as_a_stranger_reads_it(tmp_path):
    model = trained()
    path = export_student(model, tmp_path / "net.onnx", SPEC)
    onnx.checker.check_model(str(path), full_check=True)
    file = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 18)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (wanted,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, wanted.name, wanted.shape) == ("image", ["batch", 1, 8, 8], "logits", ["batch", 5])
    image = np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)
    (logits,) = session.run(None, {"image": image})
    np.testing.assert_allclose(logits, model.eval()(torch.from_numpy(image)).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize("pixels", ["unit", "uint8"])
def test_the_normalisation_can_be_part_of_the_graph(tmp_path, format, pixels):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    path = export_student(model, tmp_path / f"net.{format}", InputSpec(size=8), pixels=pixels)
    raw = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    given = raw if pixels == "uint8" else raw / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (InputSpec().mean, InputSpec().std))
    expected = model((raw / 255 - mean) / std)
    torch.testing.assert_close(load_student(path, trusted=True)(given), expected, rtol=0, atol=1e-5)


def test_weights_keep_the_networks_own_names_and_load_without_the_library(tmp_path):
    model = trained()
    module = DistillationModule(model, resnet8(5, 1), SDD(), bias=None)  # which taps the network
    export_student(module.student, tmp_path / "net.safetensors", SPEC, model=RESNET)
    export_student(module.student, tmp_path / "net.pt2", SPEC)
    state = load_file(tmp_path / "net.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_the_card_says_what_it_is(tmp_path):
    names = ["a", "b", "c", "d", "e"]
    metrics = {"val/acc1": torch.tensor(0.5), "train/loss": float("nan")}
    source = {"checkpoint": "last.ckpt"}
    export_student(
        trained(), tmp_path / "net.safetensors", SPEC, model=RESNET, label_names=names, metrics=metrics, source=source
    )
    content = card(tmp_path / "net.safetensors.json")
    assert content["model"] == RESNET
    assert (content["architecture"], content["num_classes"], content["label_names"]) == ("CIFARResNet", 5, names)
    assert content["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert (content["pretrained_cfg"]["mean"], content["pretrained_cfg"]["std"]) == ([0.3], [0.4])
    assert (content["metrics"], content["source"]) == ({"val/acc1": 0.5}, source)


def test_a_folder_in_the_layout_of_the_hub(tmp_path):
    model = trained()
    path = export_student(model, tmp_path / "deep" / "student", SPEC, model=RESNET)
    assert path == tmp_path / "deep" / "student" / "model.safetensors"
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", "model.safetensors"]
    assert unchanged(snapshot(model), load_student(path.parent))


def test_a_timm_network_is_one_that_timm_reads(tmp_path):
    timm = pytest.importorskip("timm")
    spec = {
        "class_path": "timm.create_model",
        "init_args": {"model_name": "test_resnet", "pretrained": True, "checkpoint_path": "elsewhere"},
        "dict_kwargs": {"num_classes": 7, "in_chans": 1},
    }
    model = timm.create_model("test_resnet", num_classes=7, in_chans=1)
    export_student(model, tmp_path / "student", InputSpec([0.3], [0.4], 32), model=spec)
    assert unchanged(snapshot(model), load_student(tmp_path / "student"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    assert unchanged(snapshot(model), theirs)
    assert theirs.pretrained_cfg["mean"] == [0.3]
    assert tuple(theirs.pretrained_cfg["input_size"]) == (1, 32, 32)


def test_a_network_that_the_card_can_not_build_is_handed_over(tmp_path):
    model = network()
    path = export_student(model, tmp_path / "net.safetensors", SPEC)
    with pytest.raises(UserError, match="does not say how to build the network: build it and hand it over as model"):
        load_student(path)
    assert unchanged(snapshot(model), load_student(path, network()))


def test_arguments_that_are_objects_are_not_in_the_card(tmp_path):
    spec = {"class_path": "lightning_biaskd.models.CIFARResNet", "init_args": {"norm": {"class_path": "x.Y"}}}
    export_student(trained(), tmp_path / "net.safetensors", SPEC, model=spec)
    assert "model" not in card(tmp_path / "net.safetensors.json")


def evil(*_, **__):
    pytest.fail("code ran")


class Mine(nn.Linear):
    pass


def mine() -> Mine:
    return Mine(1, 1)


@pytest.fixture
def package():
    """A package that isn't among the known ones."""
    module = types.ModuleType("my_networks")
    module.Mine, module.mine, module.evil, module.number = Mine, mine, evil, 3
    sys.modules["my_networks"] = module
    yield
    del sys.modules["my_networks"]


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("os.system", "the card names os.system, which is not among the models of lightning_biaskd, torchvision, timm"),
        ("my_networks.Mine", "trusted=True"),
        ("lightning_biaskd.export.ONNXNetwork", "not among the models"),
        ("timm.data.create_loader", "not among the models"),
        ("timm.models.load_checkpoint", "no network nor a function annotated to return one"),
        ("lightning_biaskd.models.load_weights", "no network nor a function annotated to return one"),
        ("lightning_biaskd.models.resnet9", "can't be imported"),
        ("timm.models.nothing.here", "can't be imported"),
        (3, "does not say how to build"),
    ],
)
def test_a_card_names_only_networks_of_known_packages(tmp_path, package, named, says):
    path = export_student(trained(), tmp_path / "net.safetensors", SPEC, model=RESNET)
    place = tmp_path / "net.safetensors.json"
    place.write_text(json.dumps({**card(place), "model": {"class_path": named, "init_args": {"command": "true"}}}))
    with pytest.raises(UserError, match=says):
        load_student(path)


def test_a_card_opens_no_other_file(tmp_path, monkeypatch):
    other = export_student(trained(), tmp_path / "other.pt2", SPEC)
    path = export_student(trained(), tmp_path / "net.safetensors", SPEC, model=RESNET)
    place = tmp_path / "net.safetensors.json"
    monkeypatch.setattr(torch.export, "load", evil)
    spec = {"class_path": "lightning_biaskd.export.load_student", "init_args": {"path": str(other), "trusted": True}}
    place.write_text(json.dumps({**card(place), "model": spec}))
    with pytest.raises(UserError, match="not among the models of lightning_biaskd"):
        load_student(path)


@pytest.mark.parametrize("named", ["evil", "number", "nothing"])
def test_a_trusted_card_still_names_networks(tmp_path, package, named):
    model = {"class_path": f"my_networks.{named}"}
    with pytest.raises(UserError, match="the card names my_networks"):
        export_student(nn.Linear(1, 1), tmp_path / "net.safetensors", InputSpec([0.0], [1.0], 1), model=model)


@pytest.mark.parametrize("named", ["Mine", "mine"])
def test_a_trusted_card_may_name_any_network(tmp_path, package, named):
    arguments = {"in_features": 1, "out_features": 1} if named == "Mine" else {}
    spec = {"class_path": f"my_networks.{named}", "init_args": arguments}
    model = Mine(1, 1)
    path = export_student(model, tmp_path / "net.safetensors", InputSpec([0.0], [1.0], 1), model=spec)
    assert unchanged(snapshot(model), load_student(path, trusted=True))


def test_a_graph_that_torch_would_unpickle_wants_trust(tmp_path):
    path = export_student(trained(), tmp_path / "net.pt2", SPEC)
    with pytest.raises(UserError, match="unpickles it: .*trusted=True"):
        load_student(path)


@pytest.mark.parametrize("format", FORMATS)
def test_another_file_than_the_cards_is_not_opened(tmp_path, format):
    path = export_student(trained(), tmp_path / f"net.{format}", SPEC, model=RESNET)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is not the file that .* was written for"):
        load_student(path, trusted=True)


def test_a_lost_or_spoilt_card_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no exported network at"):
        load_student(tmp_path / "net.safetensors")
    path = export_student(trained(), tmp_path / "net.safetensors", SPEC, model=RESNET)
    place = tmp_path / "net.safetensors.json"
    for content, says in (("{", "is no JSON"), ("[]", "is no card"), ("{}", "is no card"), (None, "has no card")):
        place.unlink() if content is None else place.write_text(content)
        with pytest.raises(UserError, match=says):
            load_student(path)


class Forgetful(nn.Module):
    """Answers by a counter that no graph holds."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(64, 2), 0

    def forward(self, image):
        self.calls += 1
        return self.layer(image.flatten(1)) + self.calls


class Unwritable(Forgetful):
    """Computes a function that ONNX lacks."""

    def forward(self, image):
        return self.layer(torch.special.bessel_j0(image.flatten(1)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, image):
        return self.layer(image.flatten(1)) if image.sum() > 0 else self.layer(-image.flatten(1))


def not_finite():
    model = network()
    model[5].bias.data[0] = torch.nan
    return model


class Wrapped(Forgetful):
    def forward(self, image):
        return Outputs(self.layer(image.flatten(1)))


@pytest.mark.parametrize(
    ("model", "output", "options", "says"),
    [
        (Branching, "net.pt2", {}, "can't capture Branching .*export to safetensors"),
        (Branching, "net.onnx", {}, "can't capture Branching .*export to safetensors"),
        (Unwritable, "net.onnx", {}, "can't write what torch .* of Unwritable: pip install -U torch onnxscript, or"),
        (Forgetful, "net.pt2", {}, "differs from the network by .* and was not written"),
        (not_finite, "net.onnx", {}, "differs from the network by nan of its logits"),
        (resnet8, "net.pt2", {}, r"ResNet does not take images of shape \(1, 8, 8\)"),
        (network, "net.pth", {}, "must end in .safetensors, .pt2, .onnx, or be a folder"),
        (network, "net.pt2", {"format": "onnx"}, "must end in .onnx$"),
        (network, "folder", {"format": "onnx"}, "must end in .onnx$"),
        (network, "net.safetensors", {"pixels": "uint8"}, "hold weights alone"),
        (network, "net.pt2", {"quantize": "dynamic"}, "only ONNX files are quantised"),
        (lambda: shufflenet_v2(5), "net.onnx", {"quantize": "dynamic"}, "makes convolutions slower"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, model, output, options, says):
    with pytest.raises(UserError, match=says) as error:
        export_student(model(), tmp_path / output, SPEC, **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_size_must_be_known(tmp_path):
    with pytest.raises(UserError, match="isn't known how large"):
        export_student(network(), tmp_path / "net.pt2", InputSpec([0.3], [0.4]))


def test_logits_are_found_in_what_the_network_returns(tmp_path):
    model = Wrapped()
    loaded = load_student(export_student(model, tmp_path / "net.onnx", SPEC))
    image = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(loaded(image), model(image).logits, rtol=0, atol=1e-5)


def test_a_failed_export_leaves_the_one_before(tmp_path):
    path = export_student(trained(), tmp_path / "net.pt2", SPEC)
    before = {place.name: place.read_bytes() for place in tmp_path.iterdir()}
    with pytest.raises(UserError, match="can't capture"):
        export_student(Branching(), path, SPEC)
    assert {place.name: place.read_bytes() for place in tmp_path.iterdir()} == before


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"ONNX needs {package}: pip install 'lightning-biaskd\[export\]'"):
        export_student(network(), tmp_path / "net.onnx", SPEC)


def test_matrices_are_quantised(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 5))
    whole, small = (
        export_student(model, tmp_path / name, SPEC, quantize=quantize)
        for name, quantize in (("whole.onnx", None), ("small.onnx", "dynamic"))
    )
    assert small.stat().st_size < 0.5 * whole.stat().st_size
    image = torch.randn(2, 1, 8, 8)
    logits = [load_student(path)(image) for path in (whole, small)]
    difference = (logits[0] - logits[1]).abs().max() / logits[0].abs().max().clamp_min(1)
    assert 1e-5 < difference < 0.1
    assert card(tmp_path / "small.onnx.json")["quantize"] == "dynamic"
    assert 1e-5 < card(tmp_path / "small.onnx.json")["max_difference"] < 0.1


def test_weights_are_not_unpickled(tmp_path):
    path = export_student(trained(), tmp_path / "net.safetensors", SPEC, model=RESNET)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load", "loads", "Unpickler"):
            patch.setattr(pickle, name, evil)
        load_student(path)
