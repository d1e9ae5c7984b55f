"""Schedules that follow the run, and the warning for those of another length, which the test settings silence."""

import warnings

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from tiny import TinyData, network
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)

from lightning_biaskd import ClassificationModule, UserError
from lightning_biaskd.training.schedules import CosineOverRun, StepsOverRun


def said(trainer, schedule, interval="epoch", **kwargs):
    """What a fit of six batches an epoch says about its schedule."""
    module = ClassificationModule(network(), lr_scheduler=schedule, lr_interval=interval)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(limit_val_batches=0, **kwargs).fit(module, TinyData())
    return [str(warning.message) for warning in caught if "the run has" in str(warning.message)]


@pytest.mark.parametrize(
    ("schedule", "interval", "run", "words"),
    [
        (
            lambda o: CosineAnnealingLR(o, 3),
            "epoch",
            {"max_epochs": 2},
            "CosineAnnealingLR has T_max 3 and the run has 2",
        ),
        (
            lambda o: CosineOverRun(o, 3),
            "epoch",
            {"max_epochs": 2},
            "CosineOverRun has T_max 3 and the run has 2 epochs",
        ),
        (
            lambda o: MultiStepLR(o, [1, 2]),
            "epoch",
            {"max_epochs": 2},
            "MultiStepLR has milestones 2 and the run has 2",
        ),
        (
            lambda o: StepsOverRun(o, [1, 2]),
            "epoch",
            {"max_epochs": 2},
            "StepsOverRun has milestones 2 and the run has 2",
        ),
        (
            lambda o: PolynomialLR(o, 5),
            "step",
            {"max_steps": 4},
            "PolynomialLR has total_iters 5 and the run has 4 steps",
        ),
        (lambda o: OneCycleLR(o, 0.1, 7), "step", {}, "OneCycleLR has total_steps 7 and the run has 6 steps"),
        (
            lambda o: CosineAnnealingLR(o, 6),
            "epoch",
            {"max_steps": 12, "max_epochs": -1},
            "the run has 2 epochs: set T_max",
        ),
    ],
)
def test_a_schedule_of_another_length_is_said(schedule, interval, run, words, trainer):
    (line,) = said(trainer, schedule, interval, **run)
    assert words in line
    assert "CosineOverRun or StepsOverRun" in line


def test_a_plateau_is_looked_for_where_there_was_a_validation(trainer):
    schedule = {"lr_scheduler": lambda o: ReduceLROnPlateau(o, "val/acc1")}
    run = trainer(max_epochs=4, check_val_every_n_epoch=2, num_sanity_val_steps=0)
    run.fit(ClassificationModule(network(), **schedule), TinyData())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 2


@pytest.mark.parametrize(
    ("schedule", "interval", "run"),
    [
        (lambda o: CosineAnnealingLR(o, 2), "epoch", {"max_epochs": 2}),
        (lambda o: MultiStepLR(o, [1]), "epoch", {"max_epochs": 2}),
        (CosineOverRun, "epoch", {"max_epochs": 2}),
        (lambda o: StepsOverRun(o, [0.5]), "step", {}),
        (lambda o: ExponentialLR(o, 0.9), "epoch", {}),
        (lambda o: CosineAnnealingLR(o, 60), "epoch", {"fast_dev_run": True}),
    ],
)
def test_a_schedule_that_fits_is_not(schedule, interval, run, trainer):
    assert said(trainer, schedule, interval, **run) == []


def rates(schedule, length, base=0.4):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = schedule(optimizer)
    found = []
    for _ in range(length):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def after_warmup(optimizer, warmup, schedule):
    warming = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [warming, schedule(optimizer)], [warmup])


@pytest.mark.filterwarnings("ignore:The epoch parameter in")
@pytest.mark.parametrize("warmup", [1, 3])
def test_a_warmup_is_linear_and_the_schedule_follows(warmup):
    cosine = rates(lambda o: CosineOverRun(o, 12, 0.01, warmup), 12)
    then = lambda o: CosineAnnealingLR(o, 12 - warmup, 0.01)  # noqa: E731
    assert cosine == pytest.approx(rates(lambda o: after_warmup(o, warmup, then), 12))
    assert cosine[0] == pytest.approx(0.4 / (warmup + 1))
    assert max(cosine) == cosine[warmup] == pytest.approx(0.4)
    steps = rates(lambda o: StepsOverRun(o, [6, 9], warmup=warmup), 12)
    then = lambda o: MultiStepLR(o, [6 - warmup, 9 - warmup])  # noqa: E731
    assert steps == pytest.approx(rates(lambda o: after_warmup(o, warmup, then), 12))


@pytest.mark.parametrize("schedule", [CosineOverRun, lambda o, **kwargs: StepsOverRun(o, [0.5], **kwargs)])
def test_a_warmup_that_does_not_fit_is_refused(schedule, trainer):
    with pytest.raises(UserError, match="warmup must be 0 or a positive number of epochs or steps, got -1"):
        schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), warmup=-1)
    with pytest.raises(UserError, match="warmup 4 doesn't end before epoch [24] of the schedule: shorten it"):
        said(trainer, lambda o: schedule(o, warmup=4), max_epochs=4)
    assert not said(trainer, lambda o: schedule(o, warmup=1), max_epochs=4)


def test_a_run_with_a_warmup_resumes(trainer, tmp_path):
    def fit(epochs, **kwargs):
        module = ClassificationModule(network(), lr_scheduler=lambda o: CosineOverRun(o, warmup=2))
        run = trainer(max_epochs=epochs, limit_val_batches=0)
        run.fit(module, TinyData(), **kwargs)
        return run

    fit(3).save_checkpoint(tmp_path / "three.ckpt")
    resumed, whole = fit(6, ckpt_path=tmp_path / "three.ckpt", weights_only=False), fit(6)
    assert (
        resumed.lr_scheduler_configs[0].scheduler.get_last_lr() == whole.lr_scheduler_configs[0].scheduler.get_last_lr()
    )
