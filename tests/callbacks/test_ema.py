import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import TinyData, network, snapshot, unchanged
from torch import nn

from lightning_biaskd import EMA, ClassificationModule, DistillationModule, Distiller, UserError, load_weights

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:.*callbacks used to create")


def module(student=None, teacher=None, **kwargs):
    torch.manual_seed(0)
    momentum = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)}
    return DistillationModule(student or network(), teacher or network(), **momentum, **kwargs)


class Recorder(Callback):
    """The student's state before the first step, after every step, and in every validation."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_train_start(self, trainer, pl_module):
        self.seen = trainer.global_step
        self.steps.append(snapshot(pl_module.student))

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > self.seen:
            self.on_train_start(trainer, pl_module)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_):
        if not trainer.sanity_checking and batch_idx == 0:
            self.validated.append(snapshot(pl_module.student))


def average(states, decay, warmup):
    """What the docstring says, one number at a time in double precision."""
    mean = {name: value.double() for name, value in states[0].items()}
    for s, state in enumerate(states[1:]):
        d = min(decay, (1 + s) / (10 + s)) if warmup else decay
        for name, value in state.items():
            mean[name] = d * mean[name] + (1 - d) * value if value.is_floating_point() else value
    return mean


def close(state, expected):
    for name, value in state.items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_that_of_the_docstring_and_is_what_is_evaluated(trainer, warmup, accumulate):
    recorder = Recorder()
    run = trainer(callbacks=[EMA(0.8, warmup), recorder], max_epochs=2, accumulate_grad_batches=accumulate)
    distilled = module()
    run.fit(distilled, TinyData())
    per_epoch = 6 // accumulate
    assert len(recorder.steps) == 1 + 2 * per_epoch
    close(recorder.validated[0], average(recorder.steps[: 1 + per_epoch], 0.8, warmup))
    close(recorder.validated[1], average(recorder.steps, 0.8, warmup))
    close(distilled.student.state_dict(), average(recorder.steps, 0.8, warmup))
    validated = run.callback_metrics["val/acc1"]
    assert run.validate(distilled, TinyData(), verbose=False)[0]["val/acc1"] == validated.item()
    close(distilled.student.state_dict(), average(recorder.steps, 0.8, warmup))


def test_training_goes_on_as_it_would_without(trainer):
    recorders = Recorder(), Recorder()
    for callbacks in ([EMA(0.5), recorders[0]], [recorders[1]]):
        trainer(callbacks=callbacks, max_epochs=2).fit(module(), TinyData())
    for one, other in zip(recorders[0].steps, recorders[1].steps, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def saving(folder, **kwargs):
    return ModelCheckpoint(dirpath=folder, filename="run", **kwargs)


def test_a_checkpoint_holds_the_average_and_what_was_averaged(trainer, tmp_path):
    recorder = Recorder()
    run = trainer(callbacks=[EMA(0.8), recorder, saving(tmp_path)], enable_checkpointing=True)
    distilled = module()
    run.fit(distilled, TinyData())
    run.save_checkpoint(tmp_path / "after.ckpt")  # with the average in the network
    for name in ("run.ckpt", "after.ckpt"):
        for ema, expected in ((True, average(recorder.steps, 0.8, True)), (False, recorder.steps[-1])):
            student = network()
            load_weights(student, tmp_path / name, ema=ema)
            close(student.state_dict(), expected)
        assert "averaging_state" not in torch.load(tmp_path / name, weights_only=True)
    assert unchanged(snapshot(distilled.student), loaded(tmp_path / "run.ckpt").student)


def loaded(path):
    return DistillationModule.load_from_checkpoint(path, student=network(), teacher=network())


def test_a_checkpoint_is_tested_on_the_average(trainer, tmp_path):
    callbacks = [EMA(0.8), saving(tmp_path)]
    trainer(callbacks=callbacks, enable_checkpointing=True).fit(module(), TinyData())
    fresh = module()
    trainer(callbacks=[EMA(0.8)]).test(fresh, TinyData(), ckpt_path=tmp_path / "run.ckpt", verbose=False)
    assert unchanged(snapshot(loaded(tmp_path / "run.ckpt").student), fresh.student)


@pytest.mark.parametrize("name", ["run.ckpt", "after.ckpt"])
def test_a_resumed_run_equals_one_that_was_never_stopped(trainer, tmp_path, name):
    whole, resumed = Recorder(), Recorder()
    expected, stopped, distilled = module(), module(), module()
    trainer(callbacks=[EMA(0.8), whole], max_epochs=3).fit(expected, TinyData())
    run = trainer(callbacks=[EMA(0.8), saving(tmp_path)], enable_checkpointing=True)
    run.fit(stopped, TinyData())
    run.save_checkpoint(tmp_path / "after.ckpt")
    trainer(callbacks=[EMA(0.8), resumed], max_epochs=3).fit(distilled, TinyData(), ckpt_path=tmp_path / name)
    assert unchanged(snapshot(expected.student), distilled.student)  # the average
    for kind in ("steps", "validated"):
        rest = getattr(whole, kind)[{"steps": 6, "validated": 1}[kind] :]
        for one, other in zip(rest, getattr(resumed, kind), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_without_averages_is_averaged_from_where_it_goes_on(trainer, tmp_path):
    trainer(callbacks=[saving(tmp_path)], enable_checkpointing=True).fit(module(), TinyData())
    recorder, distilled = Recorder(), module()
    run = trainer(callbacks=[EMA(0.8, warmup=False), recorder], max_epochs=2)
    run.fit(distilled, TinyData(), ckpt_path=tmp_path / "run.ckpt")
    close(recorder.steps[0], loaded(tmp_path / "run.ckpt").student.state_dict())
    assert not unchanged(snapshot(loaded(tmp_path / "run.ckpt").student), distilled.student)


def test_initial_weights_are_in_the_average(trainer, tmp_path):
    initial = network()
    torch.save(initial.state_dict(), tmp_path / "initial.pt")
    distilled = module(student_weights=str(tmp_path / "initial.pt"))
    recorder = Recorder()
    trainer(callbacks=[EMA(0.8), recorder]).fit(distilled, TinyData())
    assert all(torch.equal(recorder.steps[0][name], value) for name, value in initial.state_dict().items())
    close(distilled.student.state_dict(), average(recorder.steps, 0.8, True))


class Adapted(Distiller):
    """A method with weights of its own."""

    def __init__(self):
        super().__init__()
        self.adapter = nn.Linear(6, 6)

    def forward(self, student, teacher, target, keep=None):
        return (self.adapter(student.logits) - teacher.logits).square().mean(1)


def test_only_the_student_is_averaged(trainer):
    teacher = network()
    before, adapters, method = snapshot(teacher), [], Adapted()
    for callbacks in ([EMA(0.8)], []):
        distilled = module(teacher=teacher, distiller=method, bias=None)
        trainer(callbacks=callbacks).fit(distilled, TinyData())
        adapters.append(snapshot(distilled.distiller))
    assert unchanged(before, teacher)
    assert all(torch.equal(adapters[0][name], value) for name, value in adapters[1].items())


def test_shared_weights_stay_shared_and_come_back(trainer):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(36, 36)
            self.second, self.head = self.first, nn.Linear(36, 6)

        def forward(self, image):
            return self.head(self.second(self.first(image.flatten(1))))

    recorders = Recorder(), Recorder()
    for callbacks in ([EMA(0.5), recorders[0]], [recorders[1]]):
        torch.manual_seed(0)
        distilled = module(student=Tied())
        trainer(callbacks=callbacks, max_epochs=2).fit(distilled, TinyData())
        assert distilled.student.first.weight is distilled.student.second.weight
    assert all(torch.equal(recorders[0].steps[-1][k], v) for k, v in recorders[1].steps[-1].items())


def test_a_second_fit_starts_anew(trainer):
    callback, distilled = EMA(0.8), module()
    trainer(callbacks=[callback]).fit(distilled, TinyData())
    recorder = Recorder()
    trainer(callbacks=[callback, recorder]).fit(distilled, TinyData())
    close(distilled.student.state_dict(), average(recorder.steps, 0.8, True))


def test_a_classifier_is_averaged_too(trainer):
    torch.manual_seed(0)
    averaged, plain = network(), network()
    plain.load_state_dict(averaged.state_dict())
    trainer(callbacks=[EMA(0.8)]).fit(ClassificationModule(averaged), TinyData())
    trainer().fit(ClassificationModule(plain), TinyData())
    assert not unchanged(snapshot(averaged), plain)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_an_impossible_decay_is_one_line(decay):
    with pytest.raises(UserError, match=r"decay must lie in \[0, 1\)"):
        EMA(decay)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_an_average_that_would_not_move_is_refused(precision, trainer):
    with pytest.raises(UserError, match="would hardly move.*bf16-mixed or 32-true"):
        trainer(precision=precision, callbacks=[EMA()]).fit(ClassificationModule(network()), TinyData())


def test_a_module_without_a_network_is_one_line(trainer):
    with pytest.raises(UserError, match="LightningModule has none"):
        EMA().setup(trainer(), LightningModule(), "fit")
