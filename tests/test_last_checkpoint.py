"""Where ``--ckpt_path last`` looks, and what one run leaves behind for the next."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem

from lightning_biaskd.__main__ import main
from lightning_biaskd.training.checkpoint import newest

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:The dirpath has changed")
FAST = ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"]
FAST += ["--trainer.enable_progress_bar", "false", "--test_after_fit", "false", "--trainer.max_epochs"]
CALLBACK = "[{{class_path: ModelCheckpoint, init_args: {}}}]"
PLACES = {
    "no logger": ["--trainer.logger", "false"],
    "a folder of its own": ["--trainer.callbacks", CALLBACK.format("{dirpath: mine, filename: own}")],
    "a slash in the name": [
        "--trainer.callbacks",
        CALLBACK.format("{monitor: val/acc1, mode: max, filename: '{epoch}-{val/acc1:.3f}'}"),
    ],
    "Lightning's names": ["--trainer.callbacks", CALLBACK.format("{save_last: true}")],
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")


@pytest.mark.parametrize("place", PLACES)
def test_last_is_found_wherever_it_was_written(place, tmp_path, monkeypatch, caplog):
    (tmp_path / "another").mkdir()
    monkeypatch.chdir(tmp_path / "another")
    main(["fit", *FAST, "2", "--trainer.logger", "false"])  # another project, which is further
    monkeypatch.chdir(tmp_path / "own")
    main(["fit", *FAST, "1", *PLACES[place]])
    caplog.clear()
    main(["fit", *FAST, "2", *PLACES[place], "--ckpt_path", "last"])
    assert f"going on from '{tmp_path}/own/" in caplog.text


def test_last_without_any_is_said(capsys, caplog):
    main(["fit", *FAST, "1", *PLACES["a folder of its own"], "--ckpt_path", "last"])
    assert "starting a new run" in caplog.text
    with pytest.raises(SystemExit):
        main(["test", *PLACES["Lightning's names"], "--ckpt_path", "last", "--trainer.accelerator", "cpu"])
    assert "there is no checkpoint in 'runs/quickstart' yet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["test", *PLACES["a folder of its own"], "--ckpt_path", "best", "--trainer.accelerator", "cpu"])
    assert "--ckpt_path runs/…/checkpoints/best.ckpt" in capsys.readouterr().err


def test_a_remote_folder_holds_all_of_a_run(capsys):
    remote = ["--trainer.logger.save_dir", "memory://biaskd", "--trainer.callbacks+=CurvePlot"]
    main(["fit", *FAST, "1", *remote])
    names = {Path(path).name for path in get_filesystem("memory://").find("memory://biaskd")}
    assert {"config.yaml", "last.ckpt", "curves.png"} <= names
    assert list(Path().iterdir()) == []
    with pytest.warns(UserWarning, match="doesn't look in the remote folder 'memory://biaskd/"):
        main(["fit", *FAST, "1", *remote, "--ckpt_path", "last"])
    with pytest.warns(UserWarning, match="remote folder"), pytest.raises(SystemExit):
        main(["test", *remote[:2], "--ckpt_path", "last", "--trainer.accelerator", "cpu"])
    assert "there is no checkpoint in a folder of this machine yet" in capsys.readouterr().err


def test_checkpoints_written_in_the_background_are_guarded_too():
    background = ["--trainer.plugins", "AsyncCheckpointIO"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(["fit", *FAST, "1", *background])
    (path,) = Path().rglob("last.ckpt")
    assert newest([path]) == path
    evil = torch.load(path, weights_only=True) | {"code": print}
    torch.save(evil, "evil.ckpt")
    with pytest.raises(SystemExit):
        main(
            [
                "test",
                "-c",
                "configs/quickstart.yaml",
                "--ckpt_path",
                "evil.ckpt",
                "--trainer.accelerator",
                "cpu",
                *background,
            ]
        )
