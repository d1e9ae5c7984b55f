"""The layers of NORM are part of the student in training, and of its classifier afterwards."""

import pytest
import torch
from deploying import IMAGE, fitted, networks
from projector_settings import projected
from properties import batch
from tiny import CLASSES, snapshot, unchanged
from torch import nn

from lightning_biaskd import DistillationModule, Outputs, UserError, load_weights
from lightning_biaskd.distillers import NORM


def test_the_deployed_network_has_the_students_architecture(trainer):
    fit, _ = fitted(trainer, NORM(parts=2), 2, ce_weight=0.1)
    deployed = fit.deployed().eval()
    alone = networks()[0].eval()
    alone.load_state_dict(deployed.state_dict())
    torch.testing.assert_close(alone(IMAGE), fit(IMAGE))
    before = snapshot(fit)
    with torch.no_grad():
        for parameter in deployed.parameters():
            parameter.zero_()
    assert unchanged(before, fit)


def test_the_checkpoint_holds_the_layers(trainer, tmp_path):
    fit, run = fitted(trainer, NORM(parts=2), 2, ce_weight=0.1)
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = DistillationModule.load_from_checkpoint(
        tmp_path / "run.ckpt", student=networks()[0], teacher=networks()[1], distiller=NORM(parts=2), bias=None
    )
    torch.testing.assert_close(loaded.eval().deployed()(IMAGE), fit.deployed().eval()(IMAGE))
    alone = networks()[0]
    load_weights(alone, tmp_path / "run.ckpt")
    assert unchanged(snapshot(fit.student), alone)


def test_both_layers_are_trained():
    fit = DistillationModule(*networks(), NORM(parts=2), bias=None)
    fit.rehearse(IMAGE)
    assert fit.distiller.connectors[0][0].weight.shape == (12, 4, 1, 1)
    fit.losses((IMAGE, torch.arange(5) % CLASSES), 0).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in fit.distiller.parameters())
    assert fit.student.fc.weight.grad.any()


def test_a_classifier_without_bias_gets_one():
    student, teacher = networks()
    student.fc = nn.Linear(4, CLASSES, bias=False)
    fit = DistillationModule(student, teacher, NORM(), bias=None)
    fit.rehearse(IMAGE)
    fit.eval()
    for norm in (fit.distiller.connectors[n][1] for n in (0, 1)):
        nn.init.normal_(norm.bias)
    torch.testing.assert_close(fit.deployed().eval()(IMAGE), fit(IMAGE))


def test_the_weight_follows_the_epoch():
    student, teacher, target = batch()
    outputs = projected(student), projected(teacher)
    method = NORM(boundaries=(1, 2, 4, 5))
    method.build(*outputs)
    full = method.eval()(*outputs, target)
    for epoch, share in enumerate((0.1, 0.5, 1.0, 1.0, 0.5, 0.1, 0.1)):
        method.set_epoch(epoch)
        torch.testing.assert_close(method(*outputs, target), share * full)


@pytest.mark.parametrize(("student", "teacher"), [((4, 16), (6, 16)), ((4, 32), (6, 16)), ((4, 16), (6, 32))])
def test_larger_maps_are_averaged_to_the_smaller(student, teacher):
    def pair(width, size):
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(size),
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, CLASSES),
        )

    fit = DistillationModule(pair(*student), pair(*teacher), NORM(), bias=None)
    image = torch.randn(3, 1, 32, 32)
    fit.rehearse(image)
    torch.testing.assert_close(fit.eval().deployed()(image), fit(image))
    assert fit.losses((image, torch.arange(3)), 0).logged["train/loss_kd"].isfinite()


def test_tokens_of_a_teacher_are_the_map_that_they_make():
    logits, _, target = batch()
    good = projected(logits)
    tokens = good.features["-1"].flatten(2).transpose(1, 2)
    class_token = torch.full_like(tokens[:, :1], 9.0)
    transformer = good._replace(features={"-1": torch.cat([class_token, tokens], 1)})
    method = NORM()
    method.build(good, transformer)
    torch.testing.assert_close(method(good, transformer, target), method(good, good, target))


def test_refusals():
    logits, _, target = batch()
    good = projected(logits)
    with pytest.raises(UserError, match="the method is not built yet"):
        NORM()(good, good, target)
    with pytest.raises(UserError, match="the method is not built yet"):
        NORM().outputs_of(good)
    tokens = good._replace(features={"-1": good.features["-1"].flatten(2)})
    with pytest.raises(UserError, match=r"NORM needs a map .* gives \(8, 5, 16\)"):
        NORM().build(tokens, good)
    with pytest.raises(UserError, match="NORM: the classifier does not read the average of layer '-1'"):
        NORM().build(good._replace(embedding=good.embedding + 1), good)
    with pytest.raises(UserError, match="NORM merges layers into a linear classifier, and got Identity"):
        NORM().build(good._replace(head=nn.Identity()), good)
    method = NORM()
    method.build(good, good)
    with pytest.raises(UserError, match="NORM needs the classifier: run FeatureTap"):
        method.outputs_of(Outputs(logits, good.features))
    with pytest.raises(ValueError, match="parts must be at least 1"):
        NORM(parts=0)
    with pytest.raises(ValueError, match="boundaries must be four rising epochs"):
        NORM(boundaries=(1, 2, 3))
