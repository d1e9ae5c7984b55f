"""What version 0.1 wrote and called otherwise: it loads, or one line says how to go on."""

import importlib
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml

import lightning_biaskd
from lightning_biaskd import DistillationModule, UserError
from lightning_biaskd.__main__ import main
from lightning_biaskd.renamed import RENAMED, RENAMED_METHODS

OLD = Path(__file__).parent / "reference" / "version_0_1"
"""What ``biaskd fit --trainer.max_epochs 2`` of 0.1 left in its folder, and the accuracy that it printed."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    shutil.copy(OLD / "config.yaml", tmp_path / "run")
    shutil.copy(OLD / "last.ckpt", tmp_path / "run/checkpoints")
    return tmp_path / "run"


def test_its_checkpoint_tests_to_the_same_figure_by_its_own_configuration(run, capsys):
    main(["test", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.logger", "false"])
    expected = float((OLD / "top1.txt").read_text())
    assert f"{expected:.2f}" in capsys.readouterr().out


def test_an_option_that_is_gone_and_was_used_is_one_line(run, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["teacher_stream"] = True
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(run / "config.yaml")])
    assert "teacher_stream was an option of version 0.1: remove it" in capsys.readouterr().err.splitlines()[-1]


def test_a_text_that_is_no_yaml_is_still_a_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(
        "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {filename: '{epoch}-{val/acc1:.3f}'}}]}"
    )
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", "configs/quickstart.yaml", "-c", "own.yaml", "--print_config"])
    assert end.value.code == 0
    assert "{epoch}-{val/acc1:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("old", RENAMED)
def test_its_modules_import_with_a_warning(old):
    name = f"lightning_biaskd.{old}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(name)
    for place in RENAMED[old]:
        new = importlib.import_module(f"lightning_biaskd.{place}")
        for public in (key for key in vars(new) if not key.startswith("_")):
            assert hasattr(module, public)
    with pytest.raises(AttributeError):
        module.nothing_of_this_name  # noqa: B018


def test_the_warning_names_the_new_module():
    import sys

    sys.modules.pop("lightning_biaskd.tap", None)
    with pytest.warns(FutureWarning, match=r"lightning_biaskd\.tap is now lightning_biaskd\.networks\.tap"):
        importlib.import_module("lightning_biaskd.tap")


def test_its_public_names_are_there():
    names = "DKD EMA KD BiasLoss BiasStrategy ClassMap ClassificationModule DistillationModule Distiller DynamicWeights"
    names += " FeatureTap FrozenTeacher InputConversion InputSpec Outputs TeacherCache UserError WeightedSum"
    names += " export_student load_student load_weights"
    assert set(names.split(" ")) <= set(lightning_biaskd.__all__)
    assert all(getattr(lightning_biaskd, name) is not None for name in lightning_biaskd.__all__)


@pytest.mark.parametrize("method", RENAMED_METHODS)
def test_an_override_that_nothing_would_call_is_one_line(method):
    with pytest.raises(UserError, match=f"Mine.{method} overrides a method of version 0.1: override"):
        type("Mine", (DistillationModule,), {method: lambda self: None})


def test_its_checkpoint_has_the_keys_of_today():
    state = torch.load(OLD / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("model.") for name in state)
