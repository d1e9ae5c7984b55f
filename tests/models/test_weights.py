import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from tiny import TinyData, network, snapshot, unchanged
from torch import nn

from lightning_biaskd import ClassificationModule, DistillationModule, UserError, load_weights
from lightning_biaskd.models import resnet8


@pytest.mark.parametrize("key", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model._orig_mod."])
def test_reads_what_is_around(tmp_path, key, prefix):
    source, target = network(), network()
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "weights.pt")
    load_weights(target, tmp_path / "weights.pt")
    assert unchanged(snapshot(source), target)


def test_reads_safetensors(tmp_path):
    source, target = network(), network()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(target, str(tmp_path / "weights.safetensors"))
    assert unchanged(snapshot(source), target)


def test_the_student_is_taken_where_a_teacher_is_in_the_file_too(tmp_path):
    student, teacher, target = network(), network(), network()
    state = {f"teacher.{name}": value for name, value in teacher.state_dict().items()}
    state |= {f"student.{name}": value for name, value in student.state_dict().items()}
    torch.save(state, tmp_path / "both.pt")
    load_weights(target, tmp_path / "both.pt")
    assert unchanged(snapshot(student), target)


@pytest.mark.parametrize(
    ("averaged", "raw"),
    [("state_dict", "current_model_state"), ("state_dict_ema", "state_dict"), ("model_ema", "model")],
)
def test_averaged_weights_are_taken_unless_told_otherwise(tmp_path, averaged, raw):
    average, current = network(), network()
    content = {averaged: average.state_dict(), raw: {f"module.{k}": v for k, v in current.state_dict().items()}}
    torch.save(
        {**content, "optimizer": {"state": {}}, "averaging_state": {"n": torch.tensor(3)}}, tmp_path / "ema.ckpt"
    )
    for ema, source in ((True, average), (False, current)):
        target = network()
        load_weights(target, tmp_path / "ema.ckpt", ema=ema)
        assert unchanged(snapshot(source), target)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("build", [ClassificationModule, lambda student: DistillationModule(student, network())])
def test_reads_checkpoints_of_ours(trainer, tmp_path, build):
    source, target = network(), network()
    saving = ModelCheckpoint(dirpath=tmp_path, filename="run")
    trainer(enable_checkpointing=True, callbacks=[saving]).fit(build(source), TinyData())
    load_weights(target, tmp_path / "run.ckpt")
    assert unchanged(snapshot(source), target)


def test_builtin_weights_are_small_and_fit():
    load_weights(resnet8(10, in_channels=1), "builtin:digits_resnet8")
    with pytest.raises(UserError, match="choose builtin: and one of digits_resnet8"):
        load_weights(network(), "builtin:nothing")


class Trap:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize(
    "content", [{"state_dict": Trap()}, {"model": network().state_dict(), "args": Trap()}, network()]
)
def test_a_pickle_with_code_is_refused_unopened(tmp_path, capsys, content):
    torch.save(content, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="was not opened"):
        load_weights(network(), tmp_path / "trap.pt")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_damaged_file_is_one_line(tmp_path, name):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="no readable checkpoint") as error:
        load_weights(network(), path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["<!DOCTYPE html>", "version https://git-lfs.github.com/spec/v1\noid sha256:1", ""])
def test_a_page_in_place_of_a_file_is_one_line(tmp_path, text):
    (tmp_path / "weights.pt").write_text(text)
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_weights(network(), tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: network(classes=9), r"another number of classes \(6 in the file\)"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), *network()[1:]), "another stem .* or number of input channels"),
        (lambda: network(width=5), "probably another network"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 7), *network(9)[1:]), "another stem .* and another number of classes"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "0.bias is missing|0.weight is"),
    ],
)
def test_a_mismatch_says_what_probably_happened(tmp_path, model, says):
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=says):
        load_weights(model(), tmp_path / "weights.pt")


def test_a_long_mismatch_is_cut_to_ten(tmp_path):
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="and [0-9]+ more") as error:
        load_weights(resnet8(), tmp_path / "weights.pt")
    assert str(error.value).count(";") == 10


def test_not_strict_passes_names_by_but_not_shapes(tmp_path):
    state = network().state_dict()
    del state["5.bias"]
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "weights.pt")
    load_weights(network(), tmp_path / "weights.pt", strict=False)
    with pytest.raises(UserError, match="5.weight is"):
        load_weights(network(classes=3), tmp_path / "weights.pt", strict=False)


def test_no_file_and_no_state_dict(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        load_weights(network(), tmp_path / "nothing.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        load_weights(network(), tmp_path / "list.pt")
    torch.save({"a": network().state_dict(), "b": network().state_dict()}, tmp_path / "two.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        load_weights(network(), tmp_path / "two.pt")
