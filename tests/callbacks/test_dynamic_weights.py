import pytest
import torch
from lightning.pytorch import Callback
from tiny import TinyData, by_gamma, network
from torch.utils.data import DataLoader, IterableDataset

from lightning_biaskd import DistillationModule, DynamicWeights, UserError
from lightning_biaskd.bias import cosine, linear


class Recorder(Callback):
    """γ in every training step."""

    def __init__(self):
        self.gammas = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.gammas.append(round(pl_module.bias.gamma.item(), 6))


def gammas(trainer, *callbacks, data=None, fit=None, **kwargs):
    recorder = Recorder()
    module = DistillationModule(network(), network(), bias=by_gamma())
    run = trainer(callbacks=[*callbacks, recorder], limit_val_batches=0, **kwargs)
    run.fit(module, TinyData(batch_size=24) if data is None else data, **(fit or {}))
    return recorder.gammas


def test_gamma_follows_the_epochs(trainer):
    expected = [round(cosine(epoch / 4), 6) for epoch in range(4) for _ in range(2)]
    assert gammas(trainer, DynamicWeights(), max_epochs=4) == pytest.approx(expected, abs=1e-6)


def test_the_paper_is_the_default_where_no_callback_is_given(trainer):
    assert gammas(trainer, max_epochs=2) == pytest.approx([0, 0, 0.5, 0.5])


def test_gamma_follows_the_steps(trainer):
    assert gammas(trainer, DynamicWeights(linear, "step"), max_epochs=2) == [0, 0.25, 0.5, 0.75]


def test_steps_are_those_of_the_optimizer_under_accumulation(trainer):
    steps = gammas(trainer, DynamicWeights(linear, "step"), max_epochs=2, accumulate_grad_batches=2)
    assert steps == [0, 0, 0.5, 0.5]


def test_max_steps_bound_either_interval(trainer):
    assert gammas(trainer, DynamicWeights(linear), max_epochs=-1, max_steps=4) == [0, 0, 0.5, 0.5]
    assert gammas(trainer, DynamicWeights(linear, "step"), max_epochs=-1, max_steps=4) == [0, 0.25, 0.5, 0.75]


def test_the_nearer_of_two_bounds_counts(trainer):
    assert gammas(trainer, DynamicWeights(linear), max_epochs=100, max_steps=4) == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_an_endless_run_is_refused(trainer, interval):
    with pytest.raises(UserError, match="set max_epochs or max_steps"):
        gammas(trainer, DynamicWeights(interval=interval), max_epochs=-1)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(1, 6, 6), 0


def test_data_without_length_need_max_steps(trainer):
    def run(**kwargs):
        loader = DataLoader(Endless(), 4)
        fit = {"val_dataloaders": loader}
        return gammas(trainer, DynamicWeights(linear, "step"), data=loader, fit=fit, **kwargs)

    with pytest.raises(UserError, match="set max_steps"):
        run(max_epochs=1)
    assert run(max_epochs=-1, max_steps=2) == [0, 0.5]


def test_a_schedule_must_stay_in_the_unit_interval(trainer):
    with pytest.raises(UserError, match=r"γ = 2.0 at progress 0.000"):
        gammas(trainer, DynamicWeights(lambda t: 2.0))


def test_without_a_strategy_it_says_so(trainer):
    module = DistillationModule(network(), network(), bias=None)
    with pytest.warns(UserWarning, match="found no BiasStrategy"):
        trainer(callbacks=[DynamicWeights()]).fit(module, TinyData())


def test_unknown_interval():
    with pytest.raises(ValueError, match="choose epoch or step"):
        DynamicWeights(interval="week")


def test_a_schedule_without_effect_is_told(trainer):
    module = DistillationModule(network(), network())
    with pytest.warns(UserWarning, match="has no effect, as balance='equal' does not use γ: set balance to ramp"):
        trainer(callbacks=[DynamicWeights()]).fit(module, TinyData())


def test_the_default_strategy_needs_no_end_of_training(trainer):
    run = trainer(max_epochs=-1, max_time={"seconds": 1})
    run.fit(DistillationModule(network(), network()), TinyData())
    assert run.global_step > 0
