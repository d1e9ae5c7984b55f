"""What DiffKD does beyond the common properties."""

import copy

import pytest
import torch
from connector_settings import CONNECTOR_SETTINGS
from projector_settings import projected
from properties import batch
from torch import nn

from lightning_biaskd import Outputs, UserError
from lightning_biaskd.distillers import DiffKD
from lightning_biaskd.features.denoiser import KeptBatchNorm2d


def built():
    return copy.deepcopy(CONNECTOR_SETTINGS["DiffKD"].distiller)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("keep", [None, torch.tensor([True, False, True, True])])
def test_batch_norm_of_kept_samples_is_that_of_them_alone(keep, training):
    ours, theirs = KeptBatchNorm2d(3).train(training), nn.BatchNorm2d(3).train(training)
    for norm in (ours, theirs):
        nn.init.constant_(norm.weight, 0.7)
        nn.init.constant_(norm.bias, 0.2)
    rows = slice(None) if keep is None else keep
    for scale in (1.0, 3.0):
        x = torch.randn(4, 3, 5, 2) * scale + 1
        torch.testing.assert_close(ours(x, keep)[rows], theirs(x[rows]))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_sync_batchnorm_leaves_its_statistics_alone():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(built())
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())


def test_noise_and_steps_are_a_function_of_seed_epoch_and_image():
    student, teacher, target = batch()
    outputs = projected(student), projected(teacher), target
    method = built()
    first = method(*outputs)
    torch.rand(1)
    assert torch.equal(method(*outputs), first)
    method.set_epoch(4)
    other = method(*outputs)
    assert (other != first).all()
    method.set_epoch(3)
    assert torch.equal(method(*outputs), first)
    method.draws.seed.fill_(8)
    assert (method(*outputs) != first).all()


@pytest.mark.parametrize(
    ("student", "teacher", "steps"),
    [((3, 7, 5), (50, 8), 5), ((17, 6), (5, 4, 4), 1), ((3, 4, 4), (5, 8, 8), 3), ((4, 1, 1), (4, 1, 1), 9)],
)
def test_maps_and_tokens_of_any_size(student, teacher, steps):
    outputs = [Outputs(torch.randn(3, 6), {"-1": torch.randn(3, *shape)}) for shape in (student, teacher)]
    method = DiffKD(steps=steps)
    method.build(*outputs)
    losses = method(outputs[0]._replace(index=torch.arange(3)), outputs[1], torch.zeros(3, dtype=torch.long))
    assert losses.shape == (3,)
    assert losses.isfinite().all()


def test_the_noise_that_is_added_can_be_learned():
    student, teacher, target = batch()
    outputs = projected(student), projected(teacher), target
    method = DiffKD(-1, "wide", steps=2)
    method.build(*outputs[:2])
    optimizer = torch.optim.Adam(method.parameters(), 0.02)
    losses = []
    for _ in range(40):
        losses.append(method(*outputs).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_refusals():
    for steps in (0, 501):
        with pytest.raises(ValueError, match=r"steps must be in \[1, 500\]"):
            DiffKD(steps=steps)
    student, teacher, target = batch()
    with pytest.raises(UserError, match="needs its index"):
        built()(projected(student)._replace(index=None), projected(teacher), target)
