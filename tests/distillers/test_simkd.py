"""The student of SimKD answers with the teacher's classifier, in evaluation and where it is deployed."""

import pytest
import torch
from deploying import IMAGE, fitted, networks
from projector_settings import projected
from properties import batch
from tiny import CLASSES, snapshot, unchanged
from torch import nn

from lightning_biaskd import KD, DistillationModule, FeatureTap, Outputs, UserError, WeightedSum, load_weights
from lightning_biaskd.distillers import SimKD
from lightning_biaskd.models import CIFARResNet, wrn_16_1


def test_it_is_one_network_of_its_own(trainer):
    fit, _ = fitted(trainer, SimKD(), ce_weight=0.0)
    deployed = fit.deployed().eval()
    assert isinstance(deployed, CIFARResNet)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in deployed.modules())
    before = snapshot(fit)
    with torch.no_grad():
        for parameter in deployed.parameters():
            parameter.zero_()
    assert unchanged(before, fit)
    graph = torch.export.export(fit.deployed().eval(), (IMAGE,)).module()
    torch.testing.assert_close(graph(IMAGE), fit(IMAGE))


def test_the_checkpoint_holds_the_teachers_classifier(trainer, tmp_path):
    fit, run = fitted(trainer, SimKD(), ce_weight=0.0)
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = DistillationModule.load_from_checkpoint(  # under another teacher
        tmp_path / "run.ckpt", student=networks()[0], teacher=networks()[1], distiller=SimKD(), bias=None
    )
    torch.testing.assert_close(loaded.eval().deployed()(IMAGE), fit.deployed().eval()(IMAGE))
    alone = networks()[0]
    load_weights(alone, tmp_path / "run.ckpt")
    assert unchanged(snapshot(fit.student), alone)


def test_neither_classifier_is_trained(trainer):
    fit, run = fitted(trainer, SimKD(), ce_weight=0.0)
    optimised = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    classifier = fit.distiller.connectors[1][0]
    assert torch.equal(classifier.weight, fit.teacher.model.fc.weight)
    assert not {id(p) for head in (classifier, fit.student.fc) for p in head.parameters()} & optimised
    assert {id(p) for p in fit.distiller.connectors[0].parameters()} <= optimised


def test_methods_and_cross_entropy_see_the_deployed_logits():
    fit = DistillationModule(*networks(), WeightedSum([(KD(), 1.0), (SimKD(), 1.0)]), bias=None)
    fit.rehearse(IMAGE)
    image, target = IMAGE, torch.arange(5) % CLASSES
    logged = fit.eval().losses((image, target), 0).logged
    logits, teacher = fit(image), fit.teacher(image)
    torch.testing.assert_close(logged["train/loss_ce"], nn.functional.cross_entropy(logits, target))
    student = FeatureTap(fit.student, fit.distiller.needs.layers, embedding=True)(image)
    sim = SimKD.forward(fit.distiller.parts[1], student, teacher, target)  # projects by itself
    expected = KD()(Outputs(logits), teacher, target) + sim
    torch.testing.assert_close(logged["train/loss_kd"], expected.mean())


def test_of_other_methods_the_student_itself_is_deployed():
    fit = DistillationModule(*networks())
    assert fit.deployed() is fit.student


@pytest.mark.parametrize(("student", "teacher"), [((4, 16), (6, 16)), ((4, 32), (6, 16)), ((4, 16), (6, 32))])
def test_larger_maps_are_averaged_to_the_smaller(student, teacher):
    """The student's first; its deployed network averages the projected map."""

    def pair(width, size):
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(size),
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, CLASSES),
        )

    fit = DistillationModule(pair(*student), pair(*teacher), SimKD(), bias=None)
    fit.rehearse(torch.randn(3, 1, 32, 32))
    image = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(fit.eval().deployed()(image), fit(image))
    projected_map = fit.outputs_of(image).features["SimKD: projected"]
    assert projected_map.shape == (3, teacher[0], *[min(student[1], teacher[1])] * 2)
    assert fit.losses((image, torch.arange(3)), 0).logged["train/loss_kd"].isfinite()


class Twice(nn.Module):
    """The last layer runs several times."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, CLASSES)

    def forward(self, image):
        return self.fc(self.relu(self.conv(self.relu(image))).mean((2, 3)))


def test_networks_that_take_no_other_classifier_are_one_line():
    fit = DistillationModule(Twice(), networks()[1], SimKD("relu", "layer3"), bias=None)
    with pytest.raises(UserError, match="runs layer 'relu' several times, so nothing can follow it"):
        fit.rehearse(IMAGE)
    tap = FeatureTap(nn.Sequential(nn.Conv2d(1, 4, 3)), ["0"])
    with pytest.raises(UserError, match="the classifier of Sequential is not a submodule"):
        tap.grafted("0", nn.Identity(), nn.Identity())


def test_a_wide_resnet_keeps_its_names():
    student, teacher = wrn_16_1(CLASSES, 1), networks()[1]
    fit = DistillationModule(student, teacher, SimKD(), bias=None)
    fit.rehearse(IMAGE)
    names = set(fit.deployed().state_dict())
    assert set(student.state_dict()) - {"fc.weight", "fc.bias"} < names
    torch.testing.assert_close(fit.eval().deployed()(IMAGE), fit(IMAGE))


def test_refusals():
    logits, _, target = batch()
    good = projected(logits)
    with pytest.raises(UserError, match="the method is not built yet"):
        SimKD()(good, good, target)
    with pytest.raises(UserError, match="the method is not built yet"):
        SimKD().outputs_of(good)
    tokens = good._replace(features={"-1": good.features["-1"].flatten(2)})
    with pytest.raises(UserError, match=r"SimKD needs a map .* gives \(8, 5, 16\)"):
        SimKD().build(tokens, good)
    with pytest.raises(UserError, match="SimKD: the classifier does not read the average of layer '-1'"):
        SimKD().build(good, good._replace(embedding=good.embedding + 1))
    with pytest.raises(UserError, match="SimKD exchanges classifiers, so both must be modules"):
        SimKD().build(good._replace(head=lambda x: x), good)
    with pytest.raises(ValueError, match="factor must be at least 1"):
        SimKD(factor=0)
