import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from tiny import TinyData, network, snapshot, unchanged
from torch import nn

from lightning_biaskd import ClassificationModule, DistillationModule, UserError, load_weights
from lightning_biaskd.models import resnet8
from lightning_biaskd.networks.weights import mismatch


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
    [
        *[("state_dict", "current_model_state"), ("state_dict_ema", "state_dict"), ("model_ema", "model")],
        *[(name, "model") for name in ("swa_model", "ema_weights", "averaged_model", "avg_model", "shadow")],
    ],
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


def saved(tmp_path, state, name="weights.pt"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def test_what_a_network_counts_or_computes_itself_may_be_missing_or_additional(tmp_path):
    source, target = network(), network()
    target[1].num_batches_tracked.fill_(7)
    old = {name: value for name, value in source.state_dict().items() if "num_batches_tracked" not in name}
    old |= {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1), "7.position_ids": torch.arange(3)}
    load_weights(target, saved(tmp_path, old))
    assert all(torch.equal(value, old[name]) for name, value in target.state_dict().items() if name in old)
    assert target[1].num_batches_tracked == 7


def test_real_mismatches_are_named_before_trivial_ones(tmp_path):
    state = {name: value for name, value in network().state_dict().items() if "num_batches" not in name}
    del state["5.bias"]
    problem = mismatch(network(), state)
    assert problem.index("5.bias is missing") < problem.index("num_batches_tracked")
    with pytest.raises(UserError, match="a variant of it, as 7 of its 8 tensors fit; 5.bias is missing$"):
        load_weights(network(), saved(tmp_path, state))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module._orig_mod.model.module.{name}",
        lambda name: name.replace("0.", "0._orig_mod.", 1) if name.startswith("0.") else name,
        lambda name: f"backbone.{name}",
        lambda name: f"_fsdp_wrapped_module._checkpoint_wrapped_module.{name}",
    ],
)
def test_names_of_wrappers_at_any_depth(tmp_path, rename):
    source, target = network(), network()
    load_weights(target, saved(tmp_path, {rename(name): value for name, value in source.state_dict().items()}))
    assert unchanged(snapshot(source), target)


def test_a_compiled_network_takes_plain_weights(tmp_path):
    source, target = network(), network()
    load_weights(torch.compile(target), saved(tmp_path, source.state_dict()))
    assert unchanged(snapshot(source), target)


def test_averaged_weights_beside_raw_ones_under_prefixes(tmp_path):
    raw, average = network(), network()
    state = {f"model.{name}": value for name, value in raw.state_dict().items()}
    state |= {f"model_ema.module.{name}": value for name, value in average.state_dict().items()}
    for ema, source in ((True, average), (False, raw)):
        target = network()
        load_weights(target, saved(tmp_path, state), ema=ema)
        assert unchanged(snapshot(source), target)


def test_two_networks_that_fit_are_not_guessed_between(tmp_path):
    state = {f"{side}.{name}": value for side in ("query", "key") for name, value in network().state_dict().items()}
    with pytest.raises(UserError, match="several networks that fit, under 'query.', 'key.'"):
        load_weights(network(), saved(tmp_path, state))


def test_shared_weights_that_safetensors_hold_once(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    source, target = tied(), tied()
    save_file(
        {name: value for name, value in source.state_dict().items() if name != "1.weight"}, tmp_path / "t.safetensors"
    )
    load_weights(target, tmp_path / "t.safetensors")
    assert unchanged(snapshot(source), target)


def test_networks_that_ask_for_the_versions_of_their_modules(tmp_path):
    source, target = (torchvision.models.mnasnet0_5(num_classes=2) for _ in range(2))
    load_weights(target, saved(tmp_path, source.state_dict()))
    assert unchanged(snapshot(source), target)
    other = torchvision.models.mnasnet0_5(num_classes=2)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    load_weights(other, tmp_path / "net.safetensors")
    assert unchanged(snapshot(source), other)


@pytest.mark.parametrize(
    ("file", "net", "says"),
    [
        ("A", "B", "its shortcuts have no parameters .option A .* and its linear is the network's fc"),
        ("B", "A", "its shortcuts have parameters .option B"),
    ],
)
def test_the_other_kind_of_shortcut_is_told(tmp_path, file, net, says):
    path = saved(tmp_path, {"state_dict": resnet8(10, shortcut=file).state_dict()})
    with pytest.raises(UserError, match=says):
        load_weights(resnet8(10, shortcut=net), path)


def test_an_old_file_with_prefix_fits_option_a(tmp_path):
    source, target = resnet8(10, shortcut="A"), resnet8(10, shortcut="A")
    state = {f"module.{name}": value for name, value in source.state_dict().items() if "num_batches" not in name}
    torch.save({"state_dict": state, "best_prec1": 92.6}, tmp_path / "old.th", _use_new_zipfile_serialization=False)
    load_weights(target, tmp_path / "old.th")
    assert unchanged(snapshot(source), target)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(6, 16, dtype=torch.int8), "5.weight is torch.int8, not torch.float32"),
        (torch.zeros(6, 16, dtype=torch.complex64), "5.weight is torch.complex64, not torch.float32"),
        (torch.zeros(6, 16).to_sparse(), "5.weight is a sparse or nested tensor"),
        (torch.zeros(6, 16, device="meta"), "5.weight is a meta tensor"),
    ],
)
def test_tensors_that_torch_would_convert_or_fail_on(tmp_path, value, says):
    model = network()
    before = snapshot(model)
    with pytest.raises(UserError, match=says):
        load_weights(model, saved(tmp_path, {**network().state_dict(), "5.weight": value}))
    assert unchanged(before, model)


def test_a_half_precision_file_is_taken(tmp_path):
    target = network()
    load_weights(target, saved(tmp_path, network().half().state_dict()))
    assert target[5].weight.dtype == torch.float32


def test_dicts_that_hold_themselves_or_have_numbers_for_names(tmp_path):
    loop = {"epoch": 3}
    loop["model"] = loop
    deep = {}
    for _ in range(50):
        deep = {"model": deep}
    for content in (loop, deep, {0: torch.zeros(1)}, {"model": {0: torch.zeros(1)}}, {}):
        with pytest.raises(UserError, match="holds no state dict|does not fit"):
            load_weights(network(), saved(tmp_path, content))


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as parts:
        for name in names:
            parts.writestr(name, b"x")
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as parts:
        parts.addfile(tarfile.TarInfo("weights.pt"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("w.pt", b"", "an empty file"),
        ("w.pt", b"  <html>", "a web page"),
        ("w.safetensors", b"<html>", "a web page"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        ("config.json", b'{"a": 1}', "JSON, such as a configuration"),
        ("w.pt", b"some text", "but text"),
        ("w.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("w.pt.gz", b"\x1f\x8b\x08", "an archive .gzip.: unpack it"),
        ("w.tar", tarred(), "an archive .tar."),
        ("w.zip", zipped("weights.pt"), "an archive .zip."),
        ("w.npz", zipped("a.npy"), "a NumPy archive"),
        ("w.npy", b"\x93NUMPY\1\0", "a NumPy array"),
        ("w.keras", zipped("config.json", "model.weights.h5"), "a Keras file"),
        ("w.pt", zipped("w/data.pkl", "w/constants.pkl"), "a TorchScript program"),
        ("w.onnx", b"\x08\x09\x12\x07pytorch", "an ONNX file"),
        ("m.ckpt.data-00000-of-00001", b"\x00\x01", "a part of a TensorFlow checkpoint"),
        ("w.pt", b"\x08\x09\x00", "its pickle is damaged"),
        ("m.safetensors.index.json", b"{}", "no index of sharded weights"),
        ("m.safetensors.index.json", b'{"weight_map": {"a": "../x.pt"}}', "not the name of a file beside it"),
        ("m.safetensors.index.json", b'{"weight_map": {"a": "x.safetensors"}}', "which is not next to it"),
    ],
)
def test_other_files_are_told_by_what_they_are(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        load_weights(network(), tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_file_that_unpacks_to_much_more_is_not_opened(tmp_path):
    path = saved(tmp_path, {"0.weight": torch.zeros(1_000_000)})
    with zipfile.ZipFile(path) as parts, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in parts.namelist():
            bomb.writestr(name, parts.read(name))
    with pytest.raises(UserError, match="bytes unpack to"):
        load_weights(network(), tmp_path / "bomb.pt")


def test_folders_and_paths_that_can_not_be_opened(tmp_path):
    with pytest.raises(UserError, match="is a folder without model.safetensors"):
        load_weights(network(), tmp_path)
    with pytest.raises(UserError, match="can't open .*too long"):
        load_weights(network(), "x" * 300)
    with pytest.raises(UserError, match="no weights at ''"):
        load_weights(network(), "")


def test_folders_of_shards(tmp_path):
    source, target = network(), network()
    state = source.state_dict()
    for number, names in enumerate((list(state)[:3], list(state)[3:])):
        save_file({name: state[name] for name in names}, tmp_path / f"{number}.safetensors")
    places = {name: f"{int(number >= 3)}.safetensors" for number, name in enumerate(state)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    load_weights(target, tmp_path)
    assert unchanged(snapshot(source), target)
    save_file({"a": torch.zeros(1)}, tmp_path / "1.safetensors")
    with pytest.raises(UserError, match="expects .* in 1.safetensors, which doesn't hold it"):
        load_weights(target, tmp_path)


def test_numbers_of_numpy_are_named_not_called_code_of_unknown_kind(tmp_path):
    path = saved(tmp_path, {"model": network().state_dict(), "acc": np.float64(3)})
    with pytest.raises(UserError, match=r"asks for numpy\S*scalar"):
        load_weights(network(), path)
