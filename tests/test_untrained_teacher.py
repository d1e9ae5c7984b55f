"""A teacher that nobody trained is said; the settings of the tests silence the warning elsewhere."""

import warnings

import pytest
import torch
from tiny import CLASSES, TinyData, network

from lightning_biaskd import DistillationModule
from lightning_biaskd.teachers.frozen import FrozenTeacher
from lightning_biaskd.training.untrained_teacher import warn_of_untrained


def said(teacher, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_untrained(teacher, **kwargs)
    return [str(warning.message) for warning in caught]


def test_a_fit_and_a_validation_say_that_the_teacher_is_untrained(trainer):
    words = r"the teacher Sequential was given no weights and is right on .* near chance \(16.7%\): set teacher_weights"
    labels = torch.arange(48) % CLASSES  # of random images
    with pytest.warns(UserWarning, match=words):
        trainer(limit_train_batches=1, num_sanity_val_steps=0).fit(
            DistillationModule(network(), network()), TinyData(labels)
        )
    with pytest.warns(UserWarning, match=words):
        trainer(limit_val_batches=0, limit_train_batches=6).fit(
            DistillationModule(network(), network()), TinyData(labels)
        )
    with pytest.warns(UserWarning, match=words):
        trainer().validate(DistillationModule(network(), network()), TinyData(labels), verbose=False)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_only_a_teacher_without_weights_near_chance_is_said(classes, tmp_path):
    torch.save(network(classes).state_dict(), tmp_path / "given.pt")
    built, given = FrozenTeacher(network(classes)), FrozenTeacher(network(classes), str(tmp_path / "given.pt"))
    assert len(said(built, accuracy=1 / classes, classes=classes)) == 1
    assert said(given, accuracy=1 / classes, classes=classes) == []
    assert said(built, accuracy=0.9, classes=classes) == []
