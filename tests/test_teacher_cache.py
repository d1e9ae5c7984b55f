import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from lightning_biaskd import DistillationModule, FrozenTeacher, TeacherCache, UserError
from lightning_biaskd.__main__ import main
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.distillers import SDD
from lightning_biaskd.models import CIFARResNet
from lightning_biaskd.training.fill_cache import fill_cache

ROOT = Path(__file__).parents[1]


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

    def forward(self, image):
        self.asked += 1
        return super().forward(image)


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
    cache, source = module.teacher_cache, module.trainer.datamodule
    for _ in cache.fill(module.teacher, source, torch.device("cpu"), batch_size=50):
        pass
    assert not cache.missing(source).numel()
    asked = module.teacher.asked
    module.eval()
    for numbers, views in source.numbers_and_views():
        for number in views.tolist():
            view = torch.full_like(numbers, number)
            image = source.numbered_images(numbers, view)
            answer = cache.answer(source.train_set.pick(numbers)._replace(image=image, view=view), module.teacher)
            expected = module.teacher.model(image)
            assert ((answer.logits - expected).abs() <= error * expected.abs() + 1e-5).all()
    assert module.teacher.asked == asked


def test_the_first_answer_is_that_of_every_other_time(trainer, tmp_path):
    module = run(trainer, TeacherCache(str(tmp_path), "float16", topk=3), epochs=0)
    source = data(val_split=0)
    source.setup()
    module.teacher_cache.open(module.teacher, source, 10)
    batch = source.train_set.pick(source.train_set.index[:20])
    image, view = source.numbered_images(batch.index, torch.ones_like(batch.index)), torch.ones_like(batch.index)
    first, again = (module.teacher_cache.answer(batch._replace(image=image, view=view), module.teacher) for _ in "12")
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
    assert module.teacher.asked == 0
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
    cache, teacher = TeacherCache(str(tmp_path)), FrozenTeacher(net(width=6))
    cache.open(teacher, source, 10)
    monkeypatch.setattr("lightning_biaskd.teachers.cache.world_size", lambda: 2)
    shares = []
    for rank in (0, 1):  # the second looks for what is missing when the first has filled some of it
        monkeypatch.setattr("lightning_biaskd.teachers.cache.rank", lambda rank=rank: rank)
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
    module = run(trainer, TeacherCache(str(tmp_path), "float32", topk=3), epochs=1)
    cache, source = module.teacher_cache, module.trainer.datamodule
    list(cache.fill(module.teacher, source, torch.device("cpu")))
    batch = source.train_set.pick(source.train_set.index[:20])
    view = torch.ones_like(batch.index)
    image = source.numbered_images(batch.index, view)
    expected = module.teacher.model.eval()(image).double()
    actual = cache.answer(batch._replace(image=image, view=view), module.teacher).logits.double()
    top = expected.topk(3).indices
    torch.testing.assert_close(actual.gather(1, top), expected.gather(1, top), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.logsumexp(1), expected.logsumexp(1), rtol=1e-5, atol=1e-5)
    rest = actual.scatter(1, top, torch.nan)
    assert all(len(row[~row.isnan()].unique()) == 1 for row in rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_holds_what_is_out_of_its_range(dtype, tmp_path, trainer):
    module = run(trainer, TeacherCache(str(tmp_path)), epochs=1)
    module.teacher_cache._write(torch.tensor([0]), torch.full((1, 10), 1e9, dtype=dtype))
    assert module.teacher_cache._logits[0].isfinite().all()


def test_what_is_not_finite_is_not_kept(tmp_path):
    source = data()
    source.setup()
    model = net(width=6)
    model.fc.bias.data[3] = torch.nan
    cache, teacher = TeacherCache(str(tmp_path)), FrozenTeacher(model)
    cache.open(teacher, source, 10)
    missing = cache.missing(source)
    with pytest.raises(UserError, match="NaN or infinity, which its cache doesn't keep"):
        list(cache.fill(teacher, source, torch.device("cpu")))
    assert torch.equal(cache.missing(source), missing)


def test_no_logit_at_all_is_one_line():
    with pytest.raises(UserError, match="topk=0 stores no logit"):
        TeacherCache("nowhere", topk=0)


def test_killed_while_it_fills_it_goes_on(tmp_path):
    program = textwrap.dedent(f"""
        import sys, torch
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        from test_teacher_cache import TeacherCache, FrozenTeacher, data, net
        source = data()
        source.setup()
        cache, teacher = TeacherCache({str(tmp_path)!r}, "float32"), FrozenTeacher(net(width=6))
        cache.open(teacher, source, 10)
        for done, _ in cache.fill(teacher, source, torch.device("cpu"), batch_size=4):
            print(done, flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < 40:
            pass
        process.send_signal(signal.SIGKILL)
    source = data()
    source.setup()
    cache, teacher = TeacherCache(str(tmp_path), "float32"), FrozenTeacher(net(width=6))
    cache.open(teacher, source, 10)
    assert 0 < len(cache.missing(source)) <= 3 * 100 + 57 - 40
    list(cache.fill(teacher, source, torch.device("cpu")))
    for numbers, views in source.numbers_and_views():
        for number in views.tolist():
            view = torch.full_like(numbers, number)
            image = source.numbered_images(numbers, view)
            answer = cache.answer(source.train_set.pick(numbers)._replace(image=image, view=view), teacher)
            torch.testing.assert_close(answer.logits, teacher.model(image), rtol=1e-5, atol=1e-5)


def test_the_command_fills_it_and_training_asks_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.accelerator", "cpu", "--data.train_size", "64", "--data.views", "2"]
    main(["cache", *options, "--model.teacher_cache", "answers"])
    assert "the teacher answers" in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == ["answers"]
    filled = (tmp_path / "answers" / "filled.bin").read_bytes()
    assert sum(filled) == 64 * 2 + 126  # two views of the training images, and those of validation
    asked = []
    monkeypatch.setattr(TeacherCache, "_write", lambda *_: asked.append(1))
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
    assert (header["rows"], header["classes"], header["dtype"]) == (1257 * 4, 10, "float16")
    assert (tmp_path / "logits.bin").stat().st_size == 1257 * 4 * 10 * 2


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
