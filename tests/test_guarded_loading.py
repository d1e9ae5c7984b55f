"""No checkpoint or weights file runs code, wherever it is and whoever reads it."""

import hashlib
import os

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from tiny import snapshot, unchanged

from lightning_biaskd import ClassificationModule, DistillationModule, UserError, load_student, load_weights
from lightning_biaskd.__main__ import main
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.distillers import WKD
from lightning_biaskd.models import resnet8
from lightning_biaskd.training.checkpoint import make_durable


class Trap:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def sprung(tmp_path):
    """The folder that the trap makes when its code runs."""
    return tmp_path / "code_ran"


@pytest.fixture(params=["local", "http", "http with digest", "hf with digest"])
def source(request, tmp_path, sprung, server, monkeypatch):
    """A checkpoint that holds code, and how to name it."""
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "x": Trap(sprung)}, path)
    server.files["/evil.ckpt"] = server.files["/o/r/resolve/main/evil.ckpt"] = path.read_bytes()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    digest = f"#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"
    return {
        "local": str(path),
        "http": f"{server.address}/evil.ckpt",
        "http with digest": f"{server.address}/evil.ckpt{digest}",
        "hf with digest": f"hf://o/r/evil.ckpt{digest}",
    }[request.param]


REFUSED = "holds pickled code in addition to weights|names no digest"


@pytest.mark.parametrize(
    ("command", "weights_only", "source"),
    [
        *((command, "false", "local") for command in ("fit", "validate", "test", "predict", "export")),
        *((command, "", "http") for command in ("fit", "export")),
        *(("fit", "false", source) for source in ("http with digest", "hf with digest")),
    ],
    indirect=["source"],
)
def test_no_command_runs_it(command, weights_only, source, sprung, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--weights_only", weights_only] if weights_only and command != "export" else []
    with pytest.raises(SystemExit) as exit:
        main(
            [
                command,
                "-c",
                "configs/quickstart.yaml",
                "--ckpt_path",
                source,
                *flags,
                "--trainer.accelerator",
                "cpu",
                "--trainer.logger",
                "false",
            ]
        )
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit.value.code == 1
    assert last.startswith("biaskd: error:")
    assert "pickled code" in last or "names no digest" in last
    assert not sprung.exists()


@pytest.mark.parametrize(("command", "source"), [("fit", "local"), ("test", "http with digest")], indirect=["source"])
def test_no_plugin_around_the_loading_runs_it(command, source, sprung, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--weights_only", "false"]
    flags = ["--trainer.plugins", "AsyncCheckpointIO"]
    with pytest.raises(SystemExit):
        main([command, "-c", "configs/quickstart.yaml", "--ckpt_path", source, *quiet, *flags])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "pickled code" in last or "names no digest" in last
    assert not sprung.exists()


def test_a_strategy_that_reads_files_itself_is_never_told_to_run_code(monkeypatch):
    told = []
    monkeypatch.setattr(
        ModelParallelStrategy, "load_checkpoint", lambda self, path, weights_only=None: told.append(weights_only)
    )
    strategy = ModelParallelStrategy(1, 1)
    make_durable(strategy)
    strategy.load_checkpoint("run.ckpt", weights_only=False)
    assert told == [True]


def trained(function, source):
    module = ClassificationModule(resnet8(10, in_channels=1))
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False
    )
    getattr(trainer, function)(module, datamodule=DigitsDataModule(), ckpt_path=source, weights_only=False)


ENTRIES = {
    "load_weights": lambda source: load_weights(resnet8(10), source),
    "student_weights": lambda source: ClassificationModule(resnet8(10), weights=source)._load_initial(),
    "teacher_weights": lambda source: DistillationModule(resnet8(10), resnet8(10), teacher_weights=source),
    "module": lambda source: ClassificationModule.load_from_checkpoint(source, model=resnet8(10), weights_only=False),
    "distillation": lambda source: DistillationModule.load_from_checkpoint(
        source, student=resnet8(10), teacher=resnet8(10)
    ),
    "data module": lambda source: DigitsDataModule.load_from_checkpoint(source),
    **{name: lambda source, name=name: trained(name, source) for name in ("fit", "validate", "test", "predict")},
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_call_runs_it(entry, source, sprung):
    with pytest.raises(UserError, match=REFUSED) as error:
        ENTRIES[entry](source)
    assert "\n" not in str(error.value)
    assert not sprung.exists()


def test_class_distances_and_students_run_nothing(tmp_path, sprung):
    torch.save(Trap(sprung), tmp_path / "evil.pt")
    with pytest.raises(UserError, match="pickled code"):
        WKD(distances=str(tmp_path / "evil.pt"))
    with pytest.raises(UserError, match="has no card"):
        load_student(tmp_path / "evil.pt")
    assert not sprung.exists()


def test_a_remote_checkpoint_with_its_digest_is_read(tmp_path, server, trainer):
    module = ClassificationModule(resnet8(10, in_channels=1))
    run = trainer(limit_train_batches=1, limit_val_batches=1)
    run.fit(module, DigitsDataModule())
    run.save_checkpoint(tmp_path / "own.ckpt")
    content = server.files["/own.ckpt"] = (tmp_path / "own.ckpt").read_bytes()
    address = f"{server.address}/own.ckpt#sha256={hashlib.sha256(content).hexdigest()}"
    again = ClassificationModule(resnet8(10, in_channels=1))
    trainer(max_epochs=2, limit_train_batches=1, limit_val_batches=1).fit(again, DigitsDataModule(), ckpt_path=address)
    assert again.trainer.global_step == 2
    loaded = ClassificationModule.load_from_checkpoint(address, model=resnet8(10, in_channels=1))
    assert unchanged(snapshot(module.model), loaded.model)
