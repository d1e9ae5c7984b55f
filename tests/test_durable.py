"""Runs that are killed, and what they leave behind."""

import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bitwise import differing, same
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import Started
from tiny import CLASSES, TinyData, by_gamma, network, snapshot, unchanged
from torch import nn

from lightning_biaskd import DKD, KD, ClassificationModule, DistillationModule, UserError
from lightning_biaskd.__main__ import main
from lightning_biaskd.callbacks import EMA, DynamicWeights, NaNGuard
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.randomness.state import random_states, restore_random_state
from lightning_biaskd.training.checkpoint import DurableCheckpointIO, is_intact, newest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class KilledError(Exception):
    pass


class KillAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KilledError


class StopAt(KillAt):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def student():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10)
    )


def run(trainer, folder, kill=None, ckpt=None, seed=0, workers=0, stop=None):
    """Everything that could go astray: dropout, momentum, a rate that moves by the step, averages, warm-up, γ."""
    torch.manual_seed(seed)
    teacher = network(10)
    module = DistillationModule(
        student(),
        teacher,
        DKD(warmup_epochs=3),
        by_gamma("swap"),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=24),
        lr_interval="step",
    )
    if ckpt:
        torch.manual_seed(77)  # a new process has drawn other numbers
        random.seed(77)
    often = {"every_n_train_steps": 1 if stop is None else 1000, "save_on_exception": stop is not None}
    last = ModelCheckpoint(folder, "last", enable_version_counter=False, **often)
    end = [KillAt(kill)] if kill is not None else [StopAt(stop)] if stop is not None else []
    callbacks = [EMA(0.9), DynamicWeights(interval="step"), last, *end]
    data = DigitsDataModule(batch_size=32, train_size=250, num_workers=workers)
    fit = trainer(max_epochs=3, enable_checkpointing=True, callbacks=callbacks, plugins=[DurableCheckpointIO()])
    if not end:
        fit.fit(module, data, ckpt_path=ckpt)
    else:
        with pytest.raises(KilledError if stop is None else SystemExit):
            fit.fit(module, data, ckpt_path=ckpt)
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("step", [1, 7, 8, 9, 20])  # of eight in an epoch: its middle, its end, its beginning
def test_a_killed_run_ends_where_one_that_was_never_killed_does(step, trainer, tmp_path):
    whole = run(trainer, tmp_path / "whole")
    run(trainer, tmp_path / "cut", kill=step)
    resumed = run(trainer, tmp_path / "cut", ckpt=tmp_path / "cut" / "last.ckpt")
    assert differing(whole, resumed) == []


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_that_is_told_to_stop_loses_nothing(trainer, tmp_path):
    whole = run(trainer, tmp_path / "whole")
    stopped = run(trainer, tmp_path / "cut", stop=10)  # of eight in an epoch
    assert stopped["global_step"] == 11
    resumed = run(trainer, tmp_path / "cut", ckpt=tmp_path / "cut" / "last.ckpt")
    assert differing(whole, resumed) == []


def test_killed_twice(trainer, tmp_path):
    whole = run(trainer, tmp_path / "whole")
    run(trainer, tmp_path / "cut", kill=5)
    run(trainer, tmp_path / "cut", kill=13, ckpt=tmp_path / "cut" / "last.ckpt")
    assert same(whole["state_dict"], run(trainer, tmp_path / "cut", ckpt=tmp_path / "cut" / "last.ckpt")["state_dict"])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_that_goes_on_elsewhere_still_knows_its_best(trainer, tmp_path):
    class Scores(Callback):
        """Validation says 0.9 in the first epoch and less after."""

        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("score", 0.9 - 0.1 * trainer.current_epoch)

    def fit(folder, epochs, ckpt=None):
        best = ModelCheckpoint(folder, "best", monitor="score", mode="max", enable_version_counter=False)
        last = ModelCheckpoint(folder, "last", enable_version_counter=False)
        run = trainer(max_epochs=epochs, enable_checkpointing=True, callbacks=[Scores(), best, last])
        run.fit(ClassificationModule(network()), TinyData(), ckpt_path=ckpt)
        return best

    fit(tmp_path / "a", 1)
    best = fit(tmp_path / "b", 3, tmp_path / "a" / "last.ckpt")
    assert best.best_model_score == pytest.approx(0.9)
    assert Path(best.best_model_path) == tmp_path / "a" / "best.ckpt"
    assert Path(best.best_model_path).is_file()
    assert not (tmp_path / "b" / "best.ckpt").exists()


def test_another_run_is_another(trainer, tmp_path):
    a, b = (run(trainer, tmp_path / str(seed), seed=seed)["state_dict"] for seed in (0, 1))
    assert not same(a, b)


def test_random_states_of_python_numpy_and_torch():
    states = random_states()
    draws = [(random.random(), np.random.rand(), torch.rand(1).item()) for _ in range(2)]
    torch.save(states, "/dev/null")
    restore_random_state(states)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == draws[0]
    restore_random_state([*states, *states])  # of two processes: this one goes on as it is
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == draws[1]


def test_last_on_the_command_line_after_a_kill(tmp_path, capsys):
    options = ["fit", "--trainer.max_epochs", "8", "--trainer.accelerator", "cpu", "--test_after_fit", "false"]
    options += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    options += ["--data.train_size", "200", "--ckpt_path", "last"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    run = Started(main, options, folder=cut)
    while not list(cut.rglob("last.ckpt")):
        assert run.process.is_alive(), run.err.read_text()
        time.sleep(0.01)
    run.kill()
    for folder in (cut, whole):
        run = Started(main, options, folder=folder)
        run.finished()
        assert ("starting a new run" in run.err.read_text()) == (folder == whole)
    first, second = (torch.load(newest(folder.rglob("last.ckpt")), weights_only=True) for folder in (cut, whole))
    assert first["epoch"] == second["epoch"] == 7
    assert same(first["state_dict"], second["state_dict"])
    assert same(first["optimizer_states"], second["optimizer_states"])


def test_last_of_a_test_must_be_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", "last", "--trainer.accelerator", "cpu"])
    assert "there is no checkpoint in 'runs/quickstart' yet" in capsys.readouterr().err


def checkpoint(step, tensor=None):
    """As a Trainer writes it, almost."""
    tensor = torch.zeros(1) if tensor is None else tensor
    return {"state_dict": {"x": tensor}, "pytorch-lightning_version": "2.6.6", "global_step": step, "epoch": 0}


def test_a_full_disk_leaves_the_previous_checkpoint(trainer, tmp_path):
    io, path = DurableCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(0, torch.zeros(10)), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        with pytest.warns(UserWarning, match="make room; last.ckpt is still there, and training goes on"):
            io.save_checkpoint(checkpoint(1, torch.ones(10_000)), path)
        with pytest.warns(UserWarning, match="there is none yet"):
            io.save_checkpoint(checkpoint(1, torch.ones(10_000)), tmp_path / "other" / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(io.load_checkpoint(path)["state_dict"]["x"], torch.zeros(10))
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


@pytest.mark.parametrize("monitor", [None, "score"])
def test_a_full_disk_leaves_a_checkpoint_of_another_name(monitor, trainer, tmp_path, monkeypatch):
    class Full(Callback):
        """No file can be written in the second epoch of three."""

        def on_train_epoch_start(self, trainer, pl_module):
            monkeypatch.setattr(torch, "save", refuse if trainer.current_epoch == 1 else save)

        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("score", float(trainer.current_epoch))  # ever better

    def refuse(*_):
        raise OSError(28, "No space left on device")

    save, seen = torch.save, []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(sorted(file.name for file in tmp_path.glob("*.ckpt")))

    saver = ModelCheckpoint(tmp_path, "{epoch}", monitor=monitor, mode="max")
    rest = {"callbacks": [Full(), Look(), saver], "plugins": [DurableCheckpointIO()], "num_sanity_val_steps": 0}
    with pytest.warns(UserWarning, match="make room; epoch=0.ckpt is still there"):
        trainer(max_epochs=3, enable_checkpointing=True, **rest).fit(ClassificationModule(network()), TinyData())
    assert seen == [[], ["epoch=0.ckpt"], ["epoch=0.ckpt"]]
    assert saver.best_model_path == str(tmp_path / "epoch=2.ckpt")
    assert is_intact(tmp_path / "epoch=2.ckpt")


def test_a_checkpoint_that_is_not_there_names_the_newest_beside_it(trainer, tmp_path):
    io = DurableCheckpointIO()
    io.save_checkpoint(checkpoint(0), tmp_path / "epoch=0.ckpt")
    with pytest.raises(UserError, match=r"epoch=1.ckpt' is not there: go on from '.*epoch=0.ckpt'"):
        trainer(plugins=[io]).fit(ClassificationModule(network()), TinyData(), ckpt_path=tmp_path / "epoch=1.ckpt")


@pytest.mark.filterwarnings("ignore:.*is passed over")
@pytest.mark.parametrize("damage", ["cut", "bits"])
def test_a_damaged_checkpoint_names_the_one_before(damage, trainer, tmp_path):
    io = DurableCheckpointIO()
    for step, name in enumerate(("best", "last")):
        io.save_checkpoint(checkpoint(step, torch.arange(1000)), tmp_path / f"{name}.ckpt")
    path = tmp_path / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[2000] ^= 255
    path.write_bytes(content[:-100] if damage == "cut" else content)
    assert not is_intact(path)
    with pytest.raises(UserError, match=r"last.ckpt' is damaged, .*: go on from '.*best.ckpt'"):
        trainer(plugins=[io]).fit(ClassificationModule(network()), TinyData(), ckpt_path=path)
    with pytest.warns(UserWarning, match="last.ckpt' is passed over"):
        assert newest(tmp_path.glob("*.ckpt")) == tmp_path / "best.ckpt"
    (tmp_path / "best.ckpt").unlink()
    with pytest.raises(UserError, match="there is no other in its folder"):
        io.load_checkpoint(path)


class Bad(TinyData):
    """One image is not a number."""

    def __init__(self, position):
        super().__init__()
        self.loader.dataset.tensors[0][position] = torch.nan


class Weights(Callback):
    """Copies of the network after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(snapshot(pl_module.model))


def test_the_guard_stops_before_the_weights_are_hurt(trainer):
    module, weights = ClassificationModule(network()), Weights()
    with pytest.raises(
        UserError, match=r"the loss is not finite in step 3 \(epoch 0, batch 3\).*NaNGuard\(skip=True\)"
    ):
        trainer(callbacks=[NaNGuard(), weights], num_sanity_val_steps=0).fit(module, Bad(27))
    for name, parameter in module.model.named_parameters():
        assert torch.equal(parameter, weights.seen[-1][name])


def test_the_guard_leaves_a_step_out(trainer):
    module, weights = ClassificationModule(network()), Weights()
    run = trainer(callbacks=[NaNGuard(skip=True), weights], limit_val_batches=0)
    with pytest.warns(UserWarning, match="batch 3.*the step is left out"):
        run.fit(module, Bad(27))
    after = weights.seen
    assert len(after) == 6
    assert all(torch.equal(after[2][name], after[3][name]) for name in after[2])  # batch norm's statistics too
    assert not torch.equal(after[3]["5.weight"], after[4]["5.weight"])
    assert all(value.isfinite().all() for value in snapshot(module.model).values())
    assert run.callback_metrics["train/skipped"] == 1


@pytest.mark.parametrize("position", [0, 27])  # in the first batch, metrics are made
def test_a_step_that_is_left_out_is_in_no_mean(position, trainer):
    run = trainer(callbacks=[NaNGuard(skip=True)], limit_val_batches=0)
    with pytest.warns(UserWarning, match="the step is left out"):
        run.fit(ClassificationModule(network()), Bad(position))
    assert run.callback_metrics["train/loss"].isfinite()


class Remembers(KD):
    """Keeps the mean of the student's logits, of every step, in a parameter without gradient."""

    def __init__(self):
        super().__init__()
        self.memory = nn.Parameter(torch.zeros(100), requires_grad=False)
        self.step = nn.Parameter(torch.tensor(0), requires_grad=False)

    def forward(self, student, teacher, target, keep=None):
        self.memory[self.step] = student.logits.detach().mean()
        self.step += 1
        return torch.nan * super().forward(student, teacher, target, keep)


def test_a_step_that_is_left_out_is_in_no_memory(trainer):
    module = DistillationModule(network(), network(), Remembers(), bias=None)
    with pytest.warns(UserWarning, match="the step is left out"):
        trainer(callbacks=[NaNGuard(skip=True)], limit_val_batches=0).fit(module, TinyData())
    assert module.distiller.step == 0
    assert not module.distiller.memory.any()


def test_all_ranks_leave_out_what_one_of_them_sees(trainer, monkeypatch):
    run = trainer(callbacks=[NaNGuard(skip=True), weights := Weights()], limit_val_batches=0, limit_train_batches=2)
    monkeypatch.setattr(run.strategy, "reduce_boolean_decision", lambda decision, all=True: decision and not all)
    with pytest.warns(UserWarning, match="the step is left out"):
        run.fit(ClassificationModule(net := network()), TinyData())
    assert all(unchanged(seen, net) for seen in weights.seen)


def test_the_guard_loses_patience(trainer):
    labels = torch.arange(48) % CLASSES
    data = TinyData(labels)
    data.loader.dataset.tensors[0][:] = torch.nan
    guard = NaNGuard(skip=True, patience=2)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(UserError, match="batch 2"):
        trainer(callbacks=[guard], num_sanity_val_steps=0).fit(ClassificationModule(network()), data)


def test_a_sound_run_is_the_same_under_the_guard(trainer):
    nets = []
    for callbacks in ([], [NaNGuard(skip=True)]):
        torch.manual_seed(0)
        nets.append(network())
        trainer(callbacks=callbacks).fit(ClassificationModule(nets[-1]), TinyData())
    assert unchanged(snapshot(nets[0]), nets[1])


def test_rates_are_scaled_to_the_batch(trainer):
    module = ClassificationModule(network(10), lr_batch_size=64, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    run = trainer(accumulate_grad_batches=2, limit_train_batches=2, limit_val_batches=0)
    run.fit(module, DigitsDataModule(batch_size=16))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)
    with pytest.raises(UserError, match="lr_batch_size needs to know the batch size"):
        trainer().fit(ClassificationModule(network(), lr_batch_size=64), TinyData())
