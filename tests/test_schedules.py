"""Schedules that follow the run, and the warning for those of another length, which the test settings silence."""

import warnings

import pytest
from lightning.pytorch.cli import ReduceLROnPlateau
from tiny import TinyData, network
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, MultiStepLR, OneCycleLR, PolynomialLR

from lightning_biaskd import ClassificationModule
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
