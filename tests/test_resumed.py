"""Runs that are stopped at awkward moments, or go on with other settings."""

import os
import signal
from pathlib import Path

import pytest
import torch
from bitwise import differing, same
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny import network

from lightning_biaskd import EMA, BiasStrategy, ClassificationModule, DistillationModule, DynamicWeights, UserError
from lightning_biaskd.bias import constant, linear
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.files import atomic_write, remove_stale_drafts
from lightning_biaskd.training.callback_copies import without_duplicates
from lightning_biaskd.training.checkpoint import newest

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*keeps its old length",
    "ignore:no checkpoint could be written",
    "ignore:Checkpoint directory .* exists",
    "ignore:Be aware that when using `ckpt_",
)


class KilledError(Exception):
    pass


class At(Callback):
    """Stops at a hook, by an exception or a signal, in the epoch of that number."""

    def __init__(self, hook, epoch=1, batch=None, how=None):
        def stop(trainer, module, *args):
            here = trainer.current_epoch == epoch and not trainer.sanity_checking
            if here and (batch is None or args[-1] == batch):
                if how is None:
                    raise KilledError
                os.kill(os.getpid(), how)

        setattr(self, hook, stop)


class Validations(Callback):
    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.seen.append((trainer.current_epoch, float(trainer.callback_metrics["val/acc1"])))


def module(**kwargs):
    torch.manual_seed(0)
    plateau = {"lr_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)}
    return DistillationModule(network(10), network(10), **{**plateau, **kwargs})


def fit(trainer, folder, stop=(), ckpt=None, ema=True, data=None, build=module, **kwargs):
    seen = Validations()
    step = ModelCheckpoint(folder, "step", every_n_train_steps=1, enable_version_counter=False, save_on_exception=True)
    best = ModelCheckpoint(folder, "best", monitor="val/acc1", mode="max", enable_version_counter=False)
    epoch = ModelCheckpoint(folder, "epoch", enable_version_counter=False)
    callbacks = [*([EMA(0.9)] if ema else []), seen, *stop, step, best, epoch]
    kwargs = {"max_epochs": 3, **kwargs}
    run = trainer(enable_checkpointing=True, callbacks=callbacks, **kwargs)
    data = data or DigitsDataModule(batch_size=32, train_size=150)
    try:
        run.fit(build(), data, ckpt_path=ckpt)
    except (KilledError, SystemExit) as error:
        return seen.seen, error
    return seen.seen, torch.load(folder / "epoch.ckpt", weights_only=True)


MOMENTS = [
    ("on_validation_start", {}),
    ("on_validation_end", {}),
    ("on_validation_batch_start", {}),
    ("on_train_epoch_end", {}),
    ("on_train_batch_start", {"batch": 3}),
    ("on_validation_start", {"epoch": 2}),
]


BOUNDS = [{}, {"accumulate_grad_batches": 2}, {"max_steps": 15, "max_epochs": -1}]


@pytest.mark.parametrize(("hook", "where", "bound"), [(*moment, BOUNDS[i % 3]) for i, moment in enumerate(MOMENTS)])
def test_killed_anywhere_twice(hook, where, bound, trainer, tmp_path):
    validated, whole = fit(trainer, tmp_path / "whole", **bound)
    folder, seen = tmp_path / "cut", {}
    for stop in ([At(hook, **where)], [At("on_train_batch_start", epoch=2, batch=2)], []):
        start = newest(folder.glob("*.ckpt")) if folder.exists() else None
        part, resumed = fit(trainer, folder, stop, start, **bound)
        seen |= dict(part)
    assert seen == dict(validated)
    assert differing(whole, resumed) == []


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_a_signal_in_the_middle_of_an_accumulation(batch, trainer, tmp_path):
    _, whole = fit(trainer, tmp_path / "whole", accumulate_grad_batches=3)
    stop = [At("on_train_batch_start", batch=batch, how=signal.SIGTERM)]
    _, error = fit(trainer, tmp_path / "cut", stop, accumulate_grad_batches=3)
    assert isinstance(error, SystemExit)
    assert error.code == 143
    _, resumed = fit(trainer, tmp_path / "cut", ckpt=tmp_path / "cut/step.ckpt", accumulate_grad_batches=3)
    assert differing(whole, resumed) == []


def test_another_seed_or_optimizer_is_refused_and_the_rest_is_told(trainer, tmp_path):
    seed_everything(0, verbose=False)
    fit(trainer, tmp_path, max_epochs=1, ema=False)
    start = tmp_path / "epoch.ckpt"

    def go_on(**kwargs):
        return fit(trainer, tmp_path / "b", ckpt=start, **{"ema": False, **kwargs})

    with pytest.raises(UserError, match="data.seed 0, not 1"):
        go_on(data=DigitsDataModule(batch_size=32, train_size=150, seed=1))
    seed_everything(1, verbose=False)
    with pytest.raises(UserError, match="seed_everything 0, not 1"):
        go_on()
    seed_everything(0, verbose=False)
    with pytest.raises(UserError, match="optimizer SGD, not AdamW"):
        go_on(build=lambda: module(optimizer=torch.optim.AdamW))
    with pytest.warns(UserWarning, match="lr_scheduler.gamma stays 0.5"):
        go_on(build=lambda: module(lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)))


def test_a_dropped_average_leaves_what_was_averaged(trainer, tmp_path):
    fit(trainer, tmp_path, max_epochs=1)
    raw = torch.load(tmp_path / "epoch.ckpt", weights_only=True)["current_model_state"]
    first = []

    class First(Callback):
        def on_train_start(self, trainer, pl_module):
            first.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    with pytest.warns(UserWarning, match="goes on from the trained weights, not from their average"):
        fit(trainer, tmp_path / "b", [First()], tmp_path / "epoch.ckpt", ema=False)
    assert same(first[0], raw)


def test_weights_alone_are_no_checkpoint(trainer, tmp_path):
    torch.save(network(10).state_dict(), tmp_path / "weights.ckpt")
    with pytest.raises(UserError, match="no checkpoint of a run"):
        trainer().fit(ClassificationModule(network(10)), DigitsDataModule(), ckpt_path=tmp_path / "weights.ckpt")


def test_a_full_disk_for_metrics_and_checkpoints(trainer, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    logger, best = CSVLogger(tmp_path), ModelCheckpoint(tmp_path, "best", monitor="val/acc1", mode="max")
    monkeypatch.setattr(type(logger.experiment), "save", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    run = trainer(callbacks=[best], logger=logger, enable_checkpointing=True, log_every_n_steps=1)
    with pytest.warns(UserWarning, match=r"metrics could not be written .*No space left"):
        run.fit(ClassificationModule(network(10)), DigitsDataModule(train_size=64))
    assert run.state.finished
    assert best.best_model_path == ""
    assert best.best_model_score is None


def test_gamma_under_max_steps_is_that_of_the_epochs_start(trainer, tmp_path):
    class Gammas(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.seen.append(round(float(pl_module.bias.gamma), 5))

    def gammas(folder, *stop, ckpt=None):
        seen = Gammas()
        steps = {"max_steps": 15, "max_epochs": -1}
        fit(trainer, folder, [DynamicWeights(linear), seen, *stop], ckpt, build=paper, **steps)
        return seen.seen

    def paper():
        return module(bias=BiasStrategy.paper())

    whole = gammas(tmp_path / "whole")
    gammas(tmp_path / "cut", At("on_train_batch_start", batch=3))
    assert gammas(tmp_path / "again", ckpt=tmp_path / "cut/step.ckpt") == whole[8:]


def test_max_time_is_refused_where_gamma_moves(trainer):
    with pytest.raises(UserError, match="γ can't follow max_time"):
        trainer(max_time={"hours": 1}).fit(module(bias=BiasStrategy.paper()), DigitsDataModule())
    run = trainer(max_time={"hours": 1}, callbacks=[DynamicWeights(constant)])
    run.fit(module(bias=BiasStrategy.paper()), DigitsDataModule(train_size=32))


def test_two_callbacks_for_one_thing(trainer):
    with pytest.raises(UserError, match="two DynamicWeights"):
        trainer(callbacks=[DynamicWeights(), DynamicWeights(linear)]).fit(module(), DigitsDataModule())
    with pytest.raises(UserError, match="exchange weights"):
        trainer(callbacks=[EMA(), EMA(0.5)]).fit(module(), DigitsDataModule())
    first, second = EMA(), EMA(0.5)
    with pytest.warns(UserWarning, match="EMA is given twice"):
        assert without_duplicates([first, ModelCheckpoint(), second])[1:] == [second]
    assert len(without_duplicates([ModelCheckpoint(monitor="a"), ModelCheckpoint(monitor="b")])) == 2


def test_a_validation_or_a_refused_resumption_leaves_nothing_for_the_next_fit(trainer, tmp_path):
    seed_everything(3, verbose=False)
    fit(trainer, tmp_path, [At("on_train_batch_start", batch=3)], ema=False)
    start = tmp_path / "step.ckpt"  # of the middle of an epoch
    ends = []
    for what in ("nothing", "validate", "refused"):
        student, images = module(), DigitsDataModule(batch_size=32, train_size=150)
        before = {name: value.clone() for name, value in student.state_dict().items()}
        if what == "validate":
            trainer().validate(student, images, ckpt_path=start, verbose=False)
        if what == "refused":
            seed_everything(1, verbose=False)
            with pytest.raises(UserError, match="seed_everything 3, not 1"):
                trainer().fit(student, images, ckpt_path=start)
        student.load_state_dict(before)
        batches = []
        count = LambdaCallback(on_train_batch_end=lambda *args, seen=batches: seen.append(args[-1]))
        seed_everything(3, verbose=False)
        trainer(max_epochs=2, callbacks=[count]).fit(student, images)
        ends.append((batches, student.state_dict(), torch.rand(3)))
    assert ends[0][0] == [0, 1, 2, 3, 4] * 2
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_a_loader_that_went_on_begins_at_the_beginning_in_the_next_run():
    data = DigitsDataModule(batch_size=32, train_size=150)
    data.setup()
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    whole = [batch.index.tolist() for batch in loader]
    loader.load_state_dict({**loader.state_dict(), "batches": 2})
    assert [batch.index.tolist() for batch in loader] == whole[2:]
    assert [batch.index.tolist() for batch in loader] == whole


def test_drafts_of_killed_runs_are_removed(tmp_path):
    stale = tmp_path / ".last.ckpt.0.part"
    stale.write_bytes(b"half")
    with atomic_write(tmp_path / "last.ckpt") as file:
        file.write(b"whole")
        remove_stale_drafts(tmp_path / "last.ckpt")
        assert len(list(tmp_path.glob(".*.part"))) == 1  # the one that is being written
    assert [path.name for path in Path(tmp_path).iterdir()] == ["last.ckpt"]


def test_the_end_of_a_limited_epoch_is_no_middle(trainer, tmp_path):
    def fit(epochs, size, **kwargs):
        run = trainer(max_epochs=epochs, limit_train_batches=2, limit_val_batches=0)
        run.fit(module(), DigitsDataModule(batch_size=size), **kwargs)
        return run

    fit(1, 64).save_checkpoint(tmp_path / "one.ckpt")
    assert fit(2, 32, ckpt_path=tmp_path / "one.ckpt", weights_only=False).global_step == 4
