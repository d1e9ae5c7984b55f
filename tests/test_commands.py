"""The commands of ours, as they are run."""

import json
import re
from pathlib import Path

import onnxruntime
import pytest
import torch
from lightning.pytorch import LightningModule
from test_cli import FAST, fails
from tiny import network

from lightning_biaskd import ClassificationModule, DistillationModule, InputSpec, UserError, load_student, load_weights
from lightning_biaskd.__main__ import main
from lightning_biaskd.command_line.commands import Commands
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.models import CIFARResNet

pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create")
CHECKPOINT = "runs/quickstart/version_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a short run in it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", *FAST])
    return folder


@pytest.fixture(autouse=True)
def _folder(trained, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(trained / "runs")
    monkeypatch.chdir(tmp_path)


def expected(image):
    student = CIFARResNet(8, 10, 1, (4, 4, 8, 16))
    load_weights(student, CHECKPOINT)
    return student.eval()(image)


@pytest.mark.parametrize("format", ["safetensors", "pt2", "onnx"])
def test_export_by_the_yaml_of_the_run(format):
    main(["export", "--ckpt_path", CHECKPOINT, "--format", format, "--output", f"student.{format}"])
    image = torch.randn(3, 1, 8, 8)
    logits = load_student(f"student.{format}", trusted=format == "pt2")(image)
    torch.testing.assert_close(logits, expected(image), rtol=0, atol=1e-5)
    card = json.loads(Path(f"student.{format}.json").read_text())
    assert card["model"]["class_path"] == "lightning_biaskd.models.CIFARResNet"
    assert card["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert card["label_names"] == list("0123456789")
    assert (card["source"]["checkpoint"], card["source"]["global_step"]) == (CHECKPOINT, 3)
    assert "KD" in card["source"]["method"]
    assert 0 <= card["metrics"]["val/acc1"] <= 1


def test_pixels_go_in_and_the_test_is_in_the_card(capsys):
    initial = ["--model.student_weights", "no_longer_there.pt"]
    options = ["--output", "net.onnx", "--pixels", "uint8", "--test", "true", *FAST[6:8], *initial]
    main(["export", "--ckpt_path", CHECKPOINT, *options])
    data = DigitsDataModule(batch_size=64)
    data.setup()
    image, target = data.test_set.__getitems__(list(range(2 * 64)))[:2]
    (logits,) = onnxruntime.InferenceSession("net.onnx").run(None, {"image": image.numpy()})
    accuracy = (torch.from_numpy(logits).argmax(1) == target).float().mean().item()
    card = json.loads(Path("net.onnx.json").read_text())
    assert card["metrics"]["test/acc1"] == pytest.approx(accuracy)
    assert card["source"]["limit_test_batches"] == 2
    assert "On the test " in capsys.readouterr().out


def test_averaged_or_raw_weights():
    averaging = ["--trainer.callbacks+=EMA", "--trainer.callbacks.decay", "0.5"]
    main(["fit", *FAST, *averaging, "--trainer.logger.init_args.name", "averaged"])
    path = "runs/averaged/version_0/checkpoints/last.ckpt"
    for flags, key in (([], "state_dict"), (["--ema", "false"], "current_model_state")):
        main(["export", "--ckpt_path", path, "--output", "net.safetensors", *flags])
        state = torch.load(path, weights_only=True)[key]
        exported = load_student("net.safetensors").state_dict()
        assert all(torch.equal(state[f"model.{name}"], value) for name, value in exported.items())
        assert json.loads(Path("net.safetensors.json").read_text())["source"]["averaged"] is (not flags)


def test_export_without_the_teachers_file():
    arguments = ["--model.teacher_weights", "null", "--output", "student"]
    main(["export", "--ckpt_path", CHECKPOINT, *arguments])
    image = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(load_student("student")(image), expected(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "name the checkpoint to export: --ckpt_path"),
        (["--ckpt_path", "nothing.ckpt"], "no weights at 'nothing.ckpt'"),
        (["--ckpt_path", CHECKPOINT, "--output", "net.pth"], "must end in"),
        (["--ckpt_path", CHECKPOINT, "--format", "tflite"], "Expected .*safetensors"),
        (["--ckpt_path", CHECKPOINT, "--model.student.depth", "14"], "does not fit CIFARResNet"),
    ],
)
def test_a_mistake_is_one_line(capsys, args, says):
    assert re.search(says, fails(capsys, "export", *args))


@pytest.fixture
def commands():
    return Commands(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


def test_in_python_a_run_of_the_command_line(commands):
    module = DistillationModule.load_from_checkpoint(CHECKPOINT)
    path = commands.export(module, DigitsDataModule(), CHECKPOINT, "student.safetensors")
    image = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(load_student(path)(image), expected(image), rtol=0, atol=1e-5)


def test_a_network_of_its_own_input_is_told_by_it(commands):
    torch.save(network().state_dict(), "net.pt")
    module = ClassificationModule(network(), model_input=InputSpec([0.5], [0.5], 12))
    path = commands.export(module, DigitsDataModule(), "net.pt", "net.onnx", pixels="unit")
    card = json.loads(Path("net.onnx.json").read_text())
    assert (card["pretrained_cfg"]["input_size"], card["pretrained_cfg"]["mean"]) == ([1, 12, 12], [0.5])
    pixels = torch.rand(2, 1, 12, 12)
    torch.testing.assert_close(load_student(path)(pixels), module.model.eval()((pixels - 0.5) / 0.5), rtol=0, atol=1e-5)


def test_what_is_not_known_is_one_line(commands):
    torch.save(network().state_dict(), "net.pt")
    with pytest.raises(UserError, match="isn't known how the images are normalised"):
        commands.export(ClassificationModule(network()), None, "net.pt")
    with pytest.raises(UserError, match="isn't known how large"):
        commands.export(ClassificationModule(network(), data_input=InputSpec([0.5], [0.5])), None, "net.pt")
    with pytest.raises(UserError, match="is no ClassificationModule"):
        commands.export(LightningModule(), None, "net.pt")


def test_a_student_that_a_method_completes_is_exported_whole():
    method = ["-c", "configs/quickstart.yaml", "-c", "configs/method/simkd.yaml"]
    main(["fit", *method, *FAST, "--trainer.logger.name", "simkd"])
    checkpoint = next(Path("runs/simkd").rglob("last.ckpt"))
    main(["export", "--ckpt_path", str(checkpoint), "--output", "whole.onnx", *FAST[6:8]])
    module = DistillationModule.load_from_checkpoint(checkpoint).eval()
    image = torch.randn(3, 1, 8, 8)
    (logits,) = onnxruntime.InferenceSession("whole.onnx").run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), module(image), rtol=1e-4, atol=1e-4)
    assert (module(image) - module.student(image)).abs().max() > 1e-3
