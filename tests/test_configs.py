"""Every shipped YAML file parses and instantiates."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torchvision
import yaml

from lightning_biaskd import UserError
from lightning_biaskd.bias import Plain
from lightning_biaskd.command_line.arguments import BriefParser
from lightning_biaskd.command_line.parser import BiasKDCLI
from lightning_biaskd.command_line.shipped import CONFIGS
from lightning_biaskd.data import ImageDataModule
from lightning_biaskd.training.network import NetworkModule

EVERY = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
MATRICES = [name for name in EVERY if "axes" in (yaml.safe_load((CONFIGS / name).read_text()) or {})]
PARTS = [name for name in EVERY if name.startswith("parts/")]
FILES = [name for name in EVERY if name not in MATRICES + PARTS]  # tests/compare has the matrices
DETECTORS = {"data": "data/bccd.yaml", "pair": "pair/bccd_resnet18_shufflenet_v2.yaml"}
OF_BOXES = ("method/mgd_detection.yaml", "method/pkd.yaml")
TWO_HEADS = {"data": "data/cifar100.yaml", "pair": "pair/cifar100_resnet32x4_deit_tiny_distilled.yaml"}
COMPLETE = {"data": "data/digits.yaml", "pair": "pair/digits_resnet8_resnet8quarter.yaml"}


def instantiate(*names, extra=()):
    from lightning.pytorch import LightningDataModule, LightningModule

    files = [word for name in names for word in ("-c", str(CONFIGS / name))]
    return BiasKDCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_class=BriefParser,
        run=False,
        args=[*files, *extra, "--trainer.accelerator", "cpu", "--trainer.precision", "32", "--trainer.devices", "1"],
    )


def test_all_folders_are_there():
    assert {Path(name).parts[0] for name in EVERY} == {
        *(
            "data",
            "pair",
            "method",
            "bias",
            "trainer",
            "logger",
            "parts",
            "recipe",
            "matrix",
            "evidence",
            "quickstart.yaml",
        )
    }


def untrained(url, **_):
    return getattr(torchvision.models, Path(url).name.partition("-")[0])().state_dict()


@pytest.mark.parametrize("name", FILES)
def test_file(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((CONFIGS / name).read_text())
    folder = name.split("/")[0]
    company = {"quickstart.yaml": [], "recipe": [], "pair": [COMPLETE["data"]]}.get(folder, COMPLETE.values())
    if "/model_" in name:  # a teacher of the evidence
        company = ["recipe/teacher_fashion_mnist.yaml"]
    if name.startswith("method/deit_"):
        company = TWO_HEADS.values()
    if name in OF_BOXES:
        company = DETECTORS.values()
    names = [*company, name]
    here = (
        not (folder in ("pair", "evidence") or name.startswith("method/deit_") or name in OF_BOXES)
        or "builtin" in str(content)
        or "/model_" in name
    )
    extra = [] if here else ["--model.teacher_weights", "null"]
    # what torchvision and timm would download
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", untrained)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)
    service = Path(name).stem
    if folder == "logger" and service != "csv" and find_spec(service) is None:
        with pytest.raises(UserError, match=f"pip install -U '{service}"):
            instantiate(*names, extra=extra)
        return
    cli = instantiate(*names, extra=extra)
    assert isinstance(cli.datamodule, ImageDataModule)
    assert isinstance(cli.model, NetworkModule)
    cli.model.trainer = cli.trainer
    cli.model.configure_optimizers()


def test_every_part_is_used_and_flags_change_it():
    text = "".join((CONFIGS / name).read_text() for name in FILES)
    assert all(f"../{part}" in text for part in PARTS)
    pair = "pair/cifar100_resnet56_resnet20.yaml"
    flags = ["--model.teacher_weights", "null", "--model.optimizer.lr", "0.1", "--model.lr_scheduler.gamma", "0.5"]
    cli = instantiate("data/cifar100.yaml", pair, extra=[*flags, "--trainer.callbacks+=NaNGuard"])
    cli.model.trainer = cli.trainer
    found = cli.model.configure_optimizers()
    assert found["optimizer"].param_groups[0]["lr"] == 0.1
    schedule = found["lr_scheduler"]["scheduler"]
    assert (schedule.gamma, sorted(schedule.milestones)) == (0.5, [150, 180, 210])
    names = [getattr(callback, "filename", type(callback).__name__) for callback in cli.trainer.callbacks]
    assert {"best", "last", "NaNGuard"} <= set(names)


@pytest.mark.parametrize("flip", [False, True])
def test_files_compose_in_any_order(flip):
    names = ["data/digits.yaml", COMPLETE["pair"], "method/dkd.yaml", "bias/ramp.yaml"]
    cli = instantiate(*(reversed(names) if flip else names), extra=["--model.distiller.beta", "2"])
    assert cli.model.distiller.beta == 2
    assert (cli.model.bias.balance, cli.model.ce_weight, cli.trainer.max_epochs) == ("ramp", 1.0, 60)


def test_a_strong_view_by_flag():
    cli = instantiate(*COMPLETE.values(), "method/mlkd_two_views.yaml", extra=["--data.strong_view", "true"])
    assert cli.datamodule.strong_view
    assert (cli.model.distiller.needs.views, cli.datamodule.batch_size) == (2, 64)


def test_the_progress_bar_is_ours_unless_another_is_asked_for():
    def bar(*extra):
        return type(instantiate(*COMPLETE.values(), extra=extra).trainer.progress_bar_callback).__name__

    assert bar() == "DistillationProgressBar"
    assert bar("--trainer.callbacks+=TQDMProgressBar") == "TQDMProgressBar"
    assert bar("--trainer.enable_progress_bar=false") == "NoneType"


def test_plain_distillation_by_file_and_by_flag():
    pair = [COMPLETE["data"], COMPLETE["pair"]]
    assert isinstance(instantiate(*pair, "bias/none.yaml").model.bias, Plain)
    assert isinstance(instantiate(*pair, extra=["--model.bias", "null"]).model.bias, Plain)


def test_a_weighted_sum_in_yaml(tmp_path):
    path = tmp_path / "sum.yaml"
    path.write_text(
        "model: {class_path: DistillationModule, init_args: {distiller: {class_path: WeightedSum, init_args: "
        "{parts: [[{class_path: KD, init_args: {temperature: 2}}, 1.0], [{class_path: DKD}, 0.5]]}}}}"
    )
    terms = list(instantiate(*COMPLETE.values(), path).model.distiller.terms())
    assert [(type(term).__name__, weight) for term, weight in terms] == [("KD", 1.0), ("DKD", 0.5)]
    assert terms[0][0].temperature == 2


IMAGENET = [name for name in FILES if name.startswith("recipe/imagenet_")]


def test_imagenet_recipes_have_batches_of_512_in_all():
    for path in (CONFIGS / "trainer").glob("imagenet_*.yaml"):
        settings = yaml.safe_load(path.read_text())
        run, batch_size = settings["trainer"], settings["data"]["init_args"]["batch_size"]
        assert batch_size * run["devices"] * run.get("num_nodes", 1) == 512
        assert run["precision"] == "bf16-mixed"
        assert "sync_batchnorm" in run
    extra = ["--model.teacher.weights", "null", "--trainer.num_nodes", "1"]
    files = "recipe/imagenet_resnet34_resnet18_dkd.yaml", "trainer/imagenet_2_nodes.yaml"
    cli = instantiate(*files, extra=extra)
    assert (cli.datamodule.batch_size, cli.datamodule.val_split) == (32, 0)
    assert cli.model.channels_last


def test_imagenet_recipes_are_the_fields():
    for name in IMAGENET:
        settings = yaml.safe_load((CONFIGS / name).read_text())
        assert settings["trainer"]["logger"]["init_args"]["name"] == Path(name).stem
        assert settings["trainer"]["max_epochs"] == 100
    sgd, steps = (yaml.safe_load((CONFIGS / f"parts/imagenet_{part}.yaml").read_text()) for part in ("sgd", "steps"))
    assert sgd["init_args"] == {"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4}
    assert steps["init_args"] == {"milestones": [0.3, 0.6, 0.9], "gamma": 0.1}
