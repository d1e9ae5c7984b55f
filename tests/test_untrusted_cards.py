"""An untrusted card fetches nothing, opens nothing, and builds nothing beyond its weights."""

import json
import random

import pytest
from tiny import snapshot, unchanged

from lightning_biaskd import InputSpec, UserError, export_student, load_student
from lightning_biaskd.models import CIFARResNet

ARGUMENTS = {"depth": 8, "num_classes": 5, "in_channels": 1, "widths": [4, 4, 8, 8]}
RESNET = {"class_path": "lightning_biaskd.models.CIFARResNet", "init_args": ARGUMENTS}


@pytest.fixture
def exported(tmp_path):
    model = CIFARResNet(**ARGUMENTS)
    return model, export_student(model, tmp_path / "net.safetensors", InputSpec([0.3], [0.4], 8), model=RESNET)


def describe(path, spec):
    place = path.with_name("net.safetensors.json")
    place.write_text(json.dumps({**json.loads(place.read_text()), "model": spec}))


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [
        ("timm.create_model", {"model_name": "hf-hub:evil/tracker"}),
        ("timm.create_model", {"model_name": "hf_hub:evil/tracker"}),
        ("timm.create_model", {"model_name": "local-dir:/tmp"}),
        ("timm.models.create_model", {"model_name": "hf-hub:evil/tracker"}),
        ("timm.create_model", {"model_name": "resnet18", "pretrained": True, "pretrained_cfg": {"url": "http://x/y"}}),
        ("torchvision.models.segmentation.fcn_resnet50", {"num_classes": 2}),
        ("torchvision.models.segmentation.fcn_resnet50", {"weights_backbone": "DEFAULT", "num_classes": 2}),
        ("torchvision.models.detection.ssdlite320_mobilenet_v3_large", {"num_classes": 2}),
        ("torchvision.models.get_model", {"name": "fcn_resnet50", "num_classes": 2}),
        ("lightning_biaskd.models.torchvision_cifar_resnet", {"name": "fcn_resnet50"}),
        ("lightning_biaskd.models.torchvision_cifar_resnet", {"name": "resnet18", "weights": "DEFAULT"}),
        ("lightning_biaskd.models.from_pretrained", {"name": "tracker"}),
        ("lightning_biaskd.models.hugging_face.from_pretrained", {"name": "evil/tracker"}),
    ],
)
def test_nothing_leaves_the_machine(exported, server, monkeypatch, builder, arguments):
    pytest.importorskip(builder.partition(".")[0])
    asked = []
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setattr("socket.socket.connect", lambda *_: asked.append(_))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: asked.append(_))
    describe(exported[1], {"class_path": builder, "init_args": arguments})
    with pytest.raises(UserError) as error:
        load_student(exported[1])
    assert "\n" not in str(error.value)
    assert not asked
    assert not server.asked


@pytest.mark.parametrize("name", ["num_classes", "depth", "widths"])
def test_a_network_far_larger_than_its_weights_is_not_built(exported, name):
    huge = {"num_classes": 10**10, "depth": 6 * 10**8 + 2, "widths": [4, 10**5, 10**5, 8]}[name]
    describe(exported[1], {**RESNET, "init_args": {**ARGUMENTS, name: huge}})
    with pytest.raises(UserError, match="far larger than its weights|allocate"):
        load_student(exported[1])


@pytest.mark.parametrize(
    "spec",
    [
        {**RESNET, "init_args": [1, 2]},
        {**RESNET, "init_args": "depth"},
        {**RESNET, "init_args": {"depth": "8"}},
        {**RESNET, "init_args": {"depth": [[8]]}},
        {**RESNET, "init_args": {"widths": [0, 0, 0, 0]}},
        {**RESNET, "init_args": {"depth": {"class_path": "os.system"}}},
        {"class_path": "timm.models."},
        {"class_path": "timm.models..resnet"},
        {"class_path": {}},
        [],
        None,
    ],
)
def test_a_card_of_wrong_types_is_one_line(exported, spec):
    describe(exported[1], spec)
    with pytest.raises(UserError) as error:
        load_student(exported[1])
    assert "\n" not in str(error.value)


def test_a_card_nested_deeply_is_one_line(exported):
    exported[1].with_name("net.safetensors.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="is no JSON"):
        load_student(exported[1])


def test_damaged_cards_give_the_same_network_or_one_line(exported):
    model, path = exported
    place, before, draw = path.with_name("net.safetensors.json"), snapshot(model), random.Random(0)
    card = place.read_bytes()
    for _ in range(150):
        content = bytearray(card)
        if draw.random() < 0.3:
            content = content[: draw.randrange(len(content))]
        else:
            content[draw.randrange(len(content))] = draw.choice([draw.randrange(256), *b"0123456789{}[],:/"])
        place.write_bytes(content)
        loaded, line = None, ""
        try:
            loaded = load_student(path)
        except UserError as error:
            line = str(error)
        assert "\n" not in line
        assert loaded is None or unchanged(before, loaded)
