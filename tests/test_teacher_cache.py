import copy
import errno
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from processes import Started

from lightning_biaskd import DistillationModule, FrozenTeacher, TeacherCache, UserError
from lightning_biaskd.__main__ import main
from lightning_biaskd.bias import partition
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.distillers import SDD
from lightning_biaskd.models import CIFARResNet
from lightning_biaskd.teachers.encoding import Encoding
from lightning_biaskd.teachers.rows import Rows
from lightning_biaskd.training.fill_cache import fill_cache

CPU = torch.device("cpu")


def net(width=4, seed=0):
    torch.manual_seed(seed)
    model = CIFARResNet(8, 10, 1, (width,) * 4)
    torch.nn.init.normal_(model.fc.weight)  # logits that differ
    return model


def data(**kwargs):
    return DigitsDataModule(**{"val_split": 57, "train_size": 100, "batch_size": 32, "views": 3, **kwargs})


class Asked(FrozenTeacher):
    """Counts how often it is asked."""

    asked = 0

    def queue(self, image):
        self.asked += 1
        return super().queue(image)


def run(trainer, cache=None, epochs=4, **kwargs):
    slow = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.001)}  # so that rounding isn't amplified
    module = DistillationModule(net(seed=1), net(width=6), teacher_cache=cache, **slow, **kwargs)
    module.teacher.__class__ = Asked
    torch.manual_seed(2)
    trainer(max_epochs=epochs).fit(module, data())
    return module


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float16", 1e-3)])
def test_a_cached_run_is_the_run_without(dtype, rtol, trainer, tmp_path):
    plain = run(trainer)
    steps, evaluations = 4 * 4, 4 * 2 + 2  # of 100 and 57 images by 32; two batches before the first epoch
    assert plain.teacher.asked == steps + evaluations
    for kind in ("filling", "warm"):
        cached = run(trainer, TeacherCache(str(tmp_path), dtype))
        if kind == "warm":
            assert cached.teacher.asked < 4  # the last epochs may find views that are new
        else:
            assert cached.teacher.asked < plain.teacher.asked
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(cached.state_dict()[name], value, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 2**-11)])
def test_what_is_stored_is_the_answer_to_each_view(dtype, error, trainer, tmp_path):
    module = run(trainer, TeacherCache(str(tmp_path), dtype), epochs=1)
    source = module.trainer.datamodule
    cache = module.teacher_cache.open(module.teacher, source, 10)
    for _ in cache.fill(module.teacher, source, torch.device("cpu"), batch_size=50):
        pass
    assert not cache.missing(source).numel()
    asked = module.teacher.asked
    module.eval()
    for numbers, views in source.numbers_and_views():
        for number in views.tolist():
            view = torch.full_like(numbers, number)
            image = source.numbered_images(numbers, view)
            batch = source.train_set.pick(numbers)._replace(image=image, view=view)
            stored = cache.outputs_of(batch, module.teacher).logits
            expected = module.teacher.model(image)
            distance = expected.amax(1, keepdim=True) - expected if dtype == "float16" else expected.abs()
            assert ((stored - expected).abs() <= error * distance + 1e-5).all()
    assert module.teacher.asked == asked


def test_the_first_answer_is_that_of_every_other_time(trainer, tmp_path):
    module = run(trainer, TeacherCache(str(tmp_path), "float16", topk=3, temperature=4.0), epochs=0)
    source = data(val_split=0)
    source.setup()
    store = module.teacher_cache.open(module.teacher, source, 10)
    batch = source.train_set.pick(source.train_set.index[:20])
    image, view = source.numbered_images(batch.index, torch.ones_like(batch.index)), torch.ones_like(batch.index)
    first, again = (store.outputs_of(batch._replace(image=image, view=view), module.teacher) for _ in "12")
    assert torch.equal(first.logits, again.logits)


def test_other_teachers_data_and_forms_are_refused(trainer, tmp_path):
    run(trainer, str(tmp_path), epochs=1)
    with pytest.raises(UserError, match=r"was made of another teacher \(\w+, not \w+\): name another folder"):
        trainer().fit(DistillationModule(net(), net(width=7), teacher_cache=str(tmp_path)), data())
    with pytest.raises(UserError, match="was made of another data"):
        trainer().fit(DistillationModule(net(), net(width=6), teacher_cache=str(tmp_path)), data(seed=3))
    other = TeacherCache(str(tmp_path), "float32")
    with pytest.raises(UserError, match="another dtype"):
        trainer().fit(DistillationModule(net(), net(width=6), teacher_cache=other), data())
    with pytest.raises(UserError, match=r"another precision \(32-true, not bf16-mixed\)"):
        trainer(precision="bf16-mixed").fit(
            DistillationModule(net(), net(width=6), teacher_cache=str(tmp_path)), data()
        )


class TeacherLogits(Callback):
    """Keeps what the teacher said in each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs["teacher_logits"].float())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_answers_are_in_the_precision_of_the_run(precision, trainer, tmp_path):
    plain, cached = TeacherLogits(), TeacherLogits()
    trainer(precision=precision, callbacks=[plain]).fit(DistillationModule(net(seed=1), net(width=6)), data())
    cache = TeacherCache(str(tmp_path), "float32")
    module = DistillationModule(net(seed=1), net(width=6), teacher_cache=cache)
    fill_cache(module, data(), trainer(precision=precision))
    module.teacher.__class__ = Asked
    trainer(precision=precision, callbacks=[cached], num_sanity_val_steps=0).fit(module, data())
    assert module.teacher.asked == 1  # to compare some of the stored outputs
    for ours, theirs in zip(cached.seen, plain.seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_evaluation_outside_fit_asks_the_teacher(trainer, tmp_path):
    module = run(trainer, str(tmp_path), epochs=1)
    before, asked = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, module.teacher.asked
    trainer().validate(module, data(val_split=64, seed=3), verbose=False)
    assert module.teacher.asked == asked + 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_of_two_that_begin_at_once_one_is_refused(tmp_path, monkeypatch):
    source = data()
    source.setup()
    free = shutil.disk_usage

    def meanwhile(folder):
        monkeypatch.undo()
        TeacherCache(str(tmp_path)).open(FrozenTeacher(net(width=6)), source, 10)
        return free(folder)

    monkeypatch.setattr("shutil.disk_usage", meanwhile)
    with pytest.raises(UserError, match="was made of another teacher"):
        TeacherCache(str(tmp_path)).open(FrozenTeacher(net(width=7)), source, 10)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".bin", ".json"]


@pytest.mark.parametrize("text", ["", "{", "null"])
def test_a_damaged_header_is_one_line(text, trainer, tmp_path):
    (tmp_path / "header.json").write_text(text)
    with pytest.raises(UserError, match="header.json' is damaged: delete its folder"):
        run(trainer, str(tmp_path))


def test_processes_that_share_the_filling_leave_nothing_out(tmp_path, monkeypatch):
    source = data()
    source.setup()
    teacher = FrozenTeacher(net(width=6))
    cache = TeacherCache(str(tmp_path)).open(teacher, source, 10)
    monkeypatch.setattr("lightning_biaskd.teachers.store.world_size", lambda: 2)
    shares = []
    for rank in (0, 1):  # the second looks for what is missing when the first has filled some of it
        monkeypatch.setattr("lightning_biaskd.teachers.store.rank", lambda rank=rank: rank)
        shares += [total for _, total in cache.fill(teacher, source, torch.device("cpu"))][-1:]
    assert not cache.missing(source).numel()
    assert sum(shares) == 3 * 100 + 57
    assert min(shares) > 100


def test_splits_and_labels_do_not_matter(trainer, tmp_path):
    run(trainer, str(tmp_path), epochs=1)
    again = DistillationModule(net(), net(width=6), teacher_cache=str(tmp_path))
    trainer().fit(again, data(val_split=100, label_noise=0.5))


@pytest.mark.parametrize("kwargs", [{"strong_view": True}, {"cutout": 2, "views": None}])
def test_views_that_cannot_be_counted_are_one_line(kwargs, trainer, tmp_path):
    module = DistillationModule(net(), net(width=6), teacher_cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="views can be counted"):
        trainer().fit(module, data(**kwargs))
    assert not (tmp_path / "cache").exists()


def test_methods_that_read_features_are_one_line():
    with pytest.raises(UserError, match="SDD reads the teacher's features"):
        DistillationModule(net(), net(), SDD(), teacher_cache="nowhere")


def test_a_full_disk_is_told_before_anything_is_written(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    module = DistillationModule(net(), net(width=6), teacher_cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="needs 0 MB and .* has 0 MB free: choose another folder, fewer views, or topk"):
        trainer().fit(module, data())
    assert not (tmp_path / "cache").exists()


def test_largest_logits_and_the_sum_of_the_others(trainer, tmp_path):
    module = run(trainer, TeacherCache(str(tmp_path), "float32", topk=3, temperature=4.0), epochs=1)
    source = module.trainer.datamodule
    cache = module.teacher_cache.open(module.teacher, source, 10)
    list(cache.fill(module.teacher, source, torch.device("cpu")))
    batch = source.train_set.pick(source.train_set.index[:20])
    view = torch.ones_like(batch.index)
    image = source.numbered_images(batch.index, view)
    expected = module.teacher.model.eval()(image).double()
    actual = cache.outputs_of(batch._replace(image=image, view=view), module.teacher).logits.double()
    top = expected.topk(3).indices
    torch.testing.assert_close(actual.gather(1, top), expected.gather(1, top), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((actual / 4).logsumexp(1), (expected / 4).logsumexp(1), rtol=1e-5, atol=1e-5)
    rest = actual.scatter(1, top, torch.nan)
    assert all(len(row[~row.isnan()].unique()) == 1 for row in rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_holds_what_is_out_of_its_range(dtype):
    encoding = Encoding(10, "float16")
    logits = torch.full((1, 10), 1e9, dtype=dtype)
    logits[0, 0] = -1e9
    assert encoding.decode(encoding.encode(logits)).isfinite().all()


def test_what_is_not_finite_is_not_kept(tmp_path):
    source = data()
    source.setup()
    model = net(width=6)
    model.fc.bias.data[3] = torch.nan
    teacher = FrozenTeacher(model)
    cache = TeacherCache(str(tmp_path)).open(teacher, source, 10)
    missing = cache.missing(source)
    with pytest.raises(UserError, match="NaN or infinity, which its cache does not store"):
        list(cache.fill(teacher, source, torch.device("cpu")))
    assert torch.equal(cache.missing(source), missing)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_without_meaning_is_one_line(temperature):
    with pytest.raises(UserError, match=f"temperature must be positive, got {temperature}"):
        TeacherCache("nowhere", topk=3, temperature=temperature)


def test_no_logit_at_all_is_one_line():
    with pytest.raises(UserError, match="topk=0 stores no logit"):
        TeacherCache("nowhere", topk=0)


def fill(folder):
    source = data()
    source.setup()
    teacher = FrozenTeacher(net(width=6))
    cache = TeacherCache(folder, "float32").open(teacher, source, 10)
    for done, _ in cache.fill(teacher, source, torch.device("cpu"), batch_size=4):
        print(done, flush=True)


def test_killed_while_it_fills_it_goes_on(tmp_path):
    filling = Started(fill, str(tmp_path), folder=tmp_path / "logs")
    while not filling.out.exists() or filling.out.read_text().count("\n") < 10:
        assert filling.process.is_alive(), filling.err.read_text()
    filling.kill()
    source = data()
    source.setup()
    teacher = FrozenTeacher(net(width=6))
    cache = TeacherCache(str(tmp_path), "float32").open(teacher, source, 10)
    assert 0 < len(cache.missing(source)) <= 3 * 100 + 57 - 40
    list(cache.fill(teacher, source, torch.device("cpu")))
    for numbers, views in source.numbers_and_views():
        for number in views.tolist():
            view = torch.full_like(numbers, number)
            image = source.numbered_images(numbers, view)
            stored = cache.outputs_of(source.train_set.pick(numbers)._replace(image=image, view=view), teacher)
            torch.testing.assert_close(stored.logits, teacher.model(image), rtol=1e-5, atol=1e-5)


def test_the_command_fills_it_and_training_asks_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.accelerator", "cpu", "--data.train_size", "64", "--data.views", "2"]
    main(["cache", *options, "--model.teacher_cache", "answers"])
    assert "the teacher answers" in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == ["answers"]
    filled = np.fromfile(tmp_path / "answers" / "filled.bin", np.uint32)
    assert (filled != 0).sum() == 64 * 2 + 126  # two views of the training images, and those of validation
    asked = []
    monkeypatch.setattr(Rows, "add", lambda *_: asked.append(1))
    options += ["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false", "--test_after_fit", "false"]
    main(["fit", *options, "--model.teacher_cache", "answers"])
    assert not asked
    with pytest.raises(SystemExit):
        main(["cache", *options[:6]])
    assert "there is no cache to fill: name a folder" in capsys.readouterr().err


def test_the_folder_says_what_is_in_it(trainer, tmp_path):
    module = run(trainer, str(tmp_path), epochs=1)
    header = json.loads((tmp_path / "header.json").read_text())
    assert header["teacher"] == module.teacher.fingerprint()
    of_version_3 = {"version", "teacher", "precision", "data", "rows", "classes", "dtype", "topk"}
    assert set(header) == of_version_3  # checksums depend on it: with another key, no cache of before could be read
    assert (header["rows"], header["classes"], header["dtype"]) == (1257 * 4, 10, "float16")
    assert (tmp_path / "logits.bin").stat().st_size == 1257 * 4 * (
        4 + 10 * 2
    )  # the largest logit, and the distance to it of each


def test_a_fingerprint_is_of_weights_and_of_what_surrounds_them():
    teacher = FrozenTeacher(net())
    names = {teacher.fingerprint(), FrozenTeacher(net(), precision="bf16").fingerprint()}
    names |= {FrozenTeacher(net(seed=1)).fingerprint(), FrozenTeacher(net(width=5)).fingerprint()}
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 3)
    names |= {
        FrozenTeacher(torch.nn.Sequential(linear, kind())).fingerprint() for kind in (torch.nn.ReLU, torch.nn.Tanh)
    }
    assert len(names) == 6
    teacher.model.to(memory_format=torch.channels_last)
    assert teacher.fingerprint() == FrozenTeacher(net()).fingerprint()


def refilled(folder):
    """A full cache of one view, and what reads it: a function from a folder to its store."""
    source, teacher = data(views=1), FrozenTeacher(net(width=6))
    source.setup()

    def opened(place):
        return TeacherCache(str(place)).open(teacher, source, 10)

    list(opened(folder).fill(teacher, source, torch.device("cpu")))
    return opened, source, teacher


def bits_flipped(path, count):
    content = np.fromfile(path, np.uint8)
    filled = np.flatnonzero(content)
    content[np.random.RandomState(count).choice(filled, count)] ^= 16
    content.tofile(path)


def rows_moved(path):
    np.roll(np.fromfile(path, np.uint8), 24).tofile(path)


DAMAGES = {
    "logits cut": lambda folder: os.truncate(folder / "logits.bin", 0),
    "logits half": lambda folder: os.truncate(folder / "logits.bin", 1000),
    "logits longer": lambda folder: os.truncate(folder / "logits.bin", 1 << 20),
    "logits deleted": lambda folder: (folder / "logits.bin").unlink(),
    "logits zero": lambda folder: (folder / "logits.bin").write_bytes(bytes((folder / "logits.bin").stat().st_size)),
    "noise": lambda folder: (folder / "logits.bin").write_bytes(os.urandom((folder / "logits.bin").stat().st_size)),
    "one bit": lambda folder: bits_flipped(folder / "logits.bin", 1),
    "many bits": lambda folder: bits_flipped(folder / "logits.bin", 500),
    "one bit of a checksum": lambda folder: bits_flipped(folder / "filled.bin", 1),
    "checksums cut": lambda folder: os.truncate(folder / "filled.bin", 100),
    "checksums deleted": lambda folder: (folder / "filled.bin").unlink(),
    "all marked": lambda folder: np.full(1257 * 2, 0x01010101, np.uint32).tofile(folder / "filled.bin"),
    "rows moved": lambda folder: np.roll(np.fromfile(folder / "logits.bin", np.uint8), 24).tofile(
        folder / "logits.bin"
    ),
    "a folder": lambda folder: ((folder / "logits.bin").unlink(), (folder / "logits.bin").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(damage, tmp_path):
    opened, *_ = refilled(tmp_path / "cache")
    opened(tmp_path / "cache")
    DAMAGES[damage](tmp_path / "cache")
    with pytest.raises(UserError, match="is damaged: delete the folder and fill it again, or name another"):
        opened(tmp_path / "cache")


def test_damage_while_training_is_an_error_and_no_signal(tmp_path):
    opened, source, _ = refilled(tmp_path)
    store = opened(tmp_path)
    batch = source.train_set.pick(source.train_set.index[:20])
    batch = batch._replace(view=torch.zeros_like(batch.index))
    store.outputs_of(batch, None)
    os.truncate(tmp_path / "logits.bin", 0)
    with pytest.raises(UserError, match="is damaged"):
        store.outputs_of(batch, None)


def test_without_its_header_it_is_anybodys(tmp_path):
    opened, source, _ = refilled(tmp_path)
    header = (tmp_path / "header.json").read_text()
    (tmp_path / "header.json").unlink()
    with pytest.raises(UserError, match=r"no header.json that says of which"):
        opened(tmp_path)
    other = FrozenTeacher(net(width=7))
    forged = {**json.loads(header), "teacher": other.fingerprint()}
    (tmp_path / "header.json").write_text(json.dumps(forged))
    with pytest.raises(UserError, match="is damaged"):  # checksums belong to the header
        TeacherCache(str(tmp_path)).open(other, source, 10)


def test_an_older_format_is_told_to_be_filled_again(tmp_path):
    opened, *_ = refilled(tmp_path)
    header = json.loads((tmp_path / "header.json").read_text())
    (tmp_path / "header.json").write_text(json.dumps({**header, "version": 2}))
    with pytest.raises(UserError, match="in another format: delete the folder and fill it again"):
        opened(tmp_path)


def test_a_folder_that_was_left_half_made_is_made_again(tmp_path):
    (tmp_path / "filled.bin").write_bytes(bytes(100))
    (tmp_path / "logits.bin").write_bytes(bytes(7))
    opened, source, _ = refilled(tmp_path)
    assert not opened(tmp_path).missing(source).numel()


class Scaled(torch.nn.Module):
    """Its code, which a fingerprint doesn't see, scales the logits."""

    factor = 1.0

    def __init__(self):
        super().__init__()
        self.net = net(width=6)

    def forward(self, image):
        return self.net(image) * Scaled.factor


def test_code_that_changed_is_found_out(tmp_path, monkeypatch):
    source = data()
    source.setup()
    list(
        TeacherCache(str(tmp_path)).open(FrozenTeacher(Scaled()), source, 10).fill(FrozenTeacher(Scaled()), source, CPU)
    )
    TeacherCache(str(tmp_path)).open(FrozenTeacher(Scaled()), source, 10)
    monkeypatch.setattr(Scaled, "factor", 2.0)
    with pytest.raises(UserError, match="holds other outputs than the teacher gives now"):
        TeacherCache(str(tmp_path)).open(FrozenTeacher(Scaled()), source, 10)


def read_only(monkeypatch):
    """As for a user who may not write; root may, whatever the mode of a file."""
    real = os.open

    def opened(path, flags, *args):
        if flags & (os.O_RDWR | os.O_WRONLY) and "bin" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *args)

    monkeypatch.setattr(os, "open", opened)


def test_a_full_folder_that_cannot_be_written_to_is_read(tmp_path, monkeypatch):
    opened, source, _ = refilled(tmp_path)
    read_only(monkeypatch)
    store = opened(tmp_path)
    assert not store.missing(source).numel()
    batch = source.train_set.pick(source.train_set.index[:20])
    store.outputs_of(batch._replace(view=torch.zeros_like(batch.index)), None)


def test_a_folder_that_cannot_be_written_to_is_filled_by_nobody(tmp_path, monkeypatch):
    source, teacher = data(views=1), FrozenTeacher(net(width=6))
    source.setup()
    cache = TeacherCache(str(tmp_path))
    cache.open(teacher, source, 10)
    read_only(monkeypatch)
    store = cache.open(teacher, source, 10)
    with pytest.raises(UserError, match="can't be written to"):
        list(store.fill(teacher, source, CPU))
    batch = source.train_set.pick(source.train_set.index[:20])
    image, view = source.numbered_images(batch.index, torch.zeros_like(batch.index)), torch.zeros_like(batch.index)
    batch = batch._replace(image=image, view=view)
    first, again = (store.outputs_of(batch, teacher).logits for _ in "12")
    assert torch.equal(first, again)  # computed each time, and rounded as if stored
    with pytest.raises(UserError, match="can't be used .Permission denied.: name another folder"):
        TeacherCache(str(tmp_path / "other")).open(teacher, source, 10)


@pytest.mark.parametrize("place", ["file", "file/below", "link"])
def test_places_that_are_no_folder_are_one_line(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="can't be used|a link to a folder that is not there"):
        refilled(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_home_folder_may_be_abbreviated(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert TeacherCache("~/cache").path == Path("/somewhere/cache")


def test_space_is_taken_before_anything_is_computed(tmp_path, monkeypatch):
    opened, *_ = refilled(tmp_path / "a")
    assert (tmp_path / "a" / "logits.bin").stat().st_blocks * 512 >= 1257 * 2 * 24

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="needs 0 MB and No space left on device: choose another folder, fewer views"):
        opened(tmp_path / "b")
    monkeypatch.undo()
    opened(tmp_path / "b")


def test_a_disk_that_fills_up_stops_storing_and_not_training(trainer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(UserWarning, match="can't be written .No space left on device.: training goes on"):
        module = run(trainer, str(tmp_path), epochs=1)
    assert module.trainer.global_step == 4


def test_the_first_answer_stays_whoever_computes_it_again(tmp_path):
    opened, source, teacher = refilled(tmp_path / "full")
    stores = [opened(tmp_path / "empty") for _ in "12"]
    batch = source.train_set.pick(source.train_set.index[:20])
    image, view = source.numbered_images(batch.index, torch.zeros_like(batch.index)), torch.zeros_like(batch.index)
    batch = batch._replace(image=image, view=view)

    def meanwhile(image):  # another process stores its own outputs first
        stores[1].outputs_of(batch, teacher)
        outputs = teacher(image)
        return outputs._replace(logits=outputs.logits + 1e-2 * torch.randn_like(outputs.logits))

    first = stores[0].outputs_of(batch, meanwhile).logits
    assert torch.equal(first, stores[1].outputs_of(batch, None).logits)
    assert torch.equal(first, stores[0].outputs_of(batch, None).logits)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("topk", [None, 3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, 3000.0, -7e4])
def test_right_and_wrong_are_those_of_the_teacher(dtype, topk, scale, offset):
    encoding = Encoding(20, dtype, topk)
    for source in (torch.float32, torch.float64, torch.bfloat16):
        logits = (torch.randn(2000, 20, dtype=torch.float64) * scale + offset).to(source)
        second = logits.argsort(dim=1)[:, -2]
        close = logits.clone()  # the label one step below the first place
        top = logits.float().amax(1)
        below = torch.nextafter(top, torch.full_like(top, -torch.inf)).to(source)
        close.scatter_(1, second.unsqueeze(1), below.unsqueeze(1))
        for z in (logits, close):
            if topk is not None:  # no more than topk classes share the first place
                z = z[(z == z.amax(1, keepdim=True)).sum(1) <= topk]
            target = z.argsort(dim=1)[:, -2]
            decoded = encoding.decode(encoding.encode(z))
            assert torch.equal(partition(decoded, target), partition(z, target))
            assert torch.equal(partition(decoded, z.argmax(1)), partition(z, z.argmax(1)))


def test_settings_are_values_and_a_store_stays_in_its_process(trainer, tmp_path):
    settings = pickle.loads(pickle.dumps(copy.deepcopy(TeacherCache(str(tmp_path), "float32", topk=2))))
    assert (settings.path, settings.dtype, settings.topk) == (tmp_path, "float32", 2)
    opened, source, _ = refilled(tmp_path / "a")
    store = opened(tmp_path / "a")
    assert not copy.deepcopy(store).missing(source).numel()
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(store)
    module = run(trainer, str(tmp_path / "b"), epochs=1)
    pickle.dumps(module.teacher_cache)
    copy.deepcopy(module)


def test_a_type_that_is_not_stored_is_one_line():
    with pytest.raises(UserError, match="stores float16 or float32, not dtype='int8'"):
        TeacherCache("nowhere", "int8")
