"""OFA with exits at intermediate layers of the student."""

import copy

import pytest
import torch
from logit_settings import ofa
from projector_settings import convolved, flat, mean, normed, projected, read, relu, settled
from properties import ALL, batch, trained
from tiny import CLASSES, CompilationCount, TinyData, by_gamma, network
from torch.nn.utils import vector_to_parameters

from lightning_biaskd import DistillationModule, Outputs, UserError
from lightning_biaskd.distillers import OFA

MODES = ("swap", "blend", "onehot", "revise", "none", "drop")
EXITS = settled(OFA(layers=(-3, -1)))


@pytest.mark.parametrize("prop", ALL, ids=lambda prop: prop.__name__)
def test_property(prop):
    if prop.__name__ == "is_zero_at_the_teacher":
        with pytest.raises(AssertionError):
            prop(EXITS, projected)
    elif prop.__name__ == "is_finite_at_extreme_logits":  # it has five classes
        method, few = OFA(layers=(-3, -1)), projected(torch.randn(4, 5))
        method.build(few, few)
        prop(method, projected)
    else:
        prop(EXITS, projected)


def every_second(channels):
    """What a stride of 2 keeps."""
    return [[line[::2] for line in plane[::2]] for plane in channels]


def left(x, connector):
    """Logits of one exit."""
    layers = list(connector)
    for layer in layers[:-3]:
        if isinstance(layer, torch.nn.ReLU):
            x = relu(x)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            x = normed(x, layer)
        elif layer.groups > 1:
            x = [convolved([plane], One(w))[0] for plane, w in zip(x, layer.weight, strict=True)]
            x = every_second(x) if layer.stride == (2, 2) else x
        else:
            x = convolved(x, layer)
    means = [mean(flat(plane)) for plane in x]
    pairs = zip(layers[-1].weight.tolist(), layers[-1].bias.tolist(), strict=True)
    return [bias + sum(w * v for w, v in zip(weight, means, strict=True)) for weight, bias in pairs]


class One:
    """A convolution of one channel, without bias."""

    def __init__(self, weight):
        self.weight, self.bias = weight[None], None


def test_equals_the_slow_reference():
    student, teacher, target = batch()
    expected = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        exits = (left(read(name, s), leave) for name, leave in zip(("-3", "-1"), EXITS.connectors, strict=True))
        expected.append(ofa(s, t, y) + sum(ofa(logits, t, y) for logits in exits))
    actual = EXITS(projected(student), projected(teacher), target)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


def test_equals_the_published_implementation():
    """Hao840/OFAKD@f7bb896c, distillers/ofa.py: ofa_loss of a student's logits and of those of its exits."""
    rows = [[0.4, -1.2, 2.2, 0.3, -0.7, 1.5], [1.3, 0.2, -0.9, -2.4, 0.8, 0.1], [-1.1, 0.9, 0.6, 1.9, -0.2, -1.4]]
    student = torch.tensor(rows, dtype=torch.float64)
    outputs = projected(student), projected(-1.5 * student.flip(0))
    method = OFA(layers=(-3, -2, -1))
    method.build(*outputs)
    count = sum(p.numel() for p in trained(method))
    vector_to_parameters((torch.arange(count, dtype=torch.float64) + 1).sin() / 2, trained(method))
    assert method(*outputs, torch.tensor([0, 1, 2])).mean().item() == pytest.approx(PUBLISHED, rel=1e-7)


PUBLISHED = 7.028332623011978


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shift", [4.0, 30.0, -30.0])
def test_every_mode_reaches_the_student_and_the_exits(mode, shift):
    student, teacher, target = batch(shift=shift)
    student.requires_grad_()
    bias = by_gamma(mode).double()
    bias.gamma.fill_(0.3)
    loss = bias(EXITS, projected(student), projected(teacher), target)
    gradients = torch.autograd.grad(loss.total, [student, *trained(EXITS)])
    assert all(gradient.isfinite().all() for gradient in gradients)
    if shift == 4.0:
        assert all(gradient.any() for gradient in gradients)


def test_a_corrected_teacher_corrects_the_exits_too():
    student, teacher, target = batch(shift=-30.0)
    bias = by_gamma("swap", "batch").double()
    bias.gamma.fill_(1.0)
    corrected = bias.rectified(EXITS, teacher, target)
    expected = EXITS(projected(student), Outputs(corrected), target).mean()
    torch.testing.assert_close(bias(EXITS, projected(student), projected(teacher), target).total, expected)


def test_compiles_once():
    method, count, bias = copy.deepcopy(EXITS), CompilationCount(), by_gamma().double()
    step = torch.compile(lambda s, t, y: bias(method, projected(s), projected(t), y), backend=count, fullgraph=True)
    for gamma in (0.0, 0.4, 1.0):
        student, teacher, target = batch(shift=4.0)
        bias.gamma.fill_(gamma)
        torch.testing.assert_close(
            step(student, teacher, target), bias(method, projected(student), projected(teacher), target)
        )
    assert count.graphs == 1


def test_maps_are_halved_to_the_smallest():
    student, teacher, _ = batch()
    method = OFA(layers=(-3, -2, -1), width=7)
    method.build(projected(student), Outputs(teacher))
    convolutions = [[m.stride for m in leave if isinstance(m, torch.nn.Conv2d)] for leave in method.connectors]
    assert convolutions == [[(2, 2), (1, 1), (1, 1), (1, 1)], [(1, 1)], [(1, 1)]]
    assert [leave[-1].in_features for leave in method.connectors] == [7, 7, 7]
    assert OFA().needs == OFA(layers=()).needs
    assert not OFA().builds
    assert (OFA().dense, method.dense) == ("rows", None)


def test_the_exits_are_trained_and_not_deployed(trainer):
    module = DistillationModule(network(), network(), OFA(layers=(-1,)))
    trainer(max_epochs=2).fit(module, TinyData())
    assert module.deployed() is module.student
    optimised = {id(p) for group in module.optimizers().param_groups for p in group["params"]}
    assert {id(p) for p in module.distiller.parameters()} <= optimised
    assert module.distiller.connectors[0][-1].out_features == CLASSES


def test_tokens_are_maps():
    student, teacher, target = batch()
    tokens = torch.randn(8, 17, 5, dtype=torch.float64)
    outputs = Outputs(student, {"-1": tokens}), Outputs(teacher)
    method = OFA(layers=(-1,))
    method.build(*outputs)
    assert method(*outputs, target).isfinite().all()


def test_refusals():
    student, teacher, target = batch()
    with pytest.raises(UserError, match="the method is not built yet"):
        OFA(layers=(-1,))(projected(student), projected(teacher), target)
    with pytest.raises(UserError, match="width must be at least 1"):
        OFA(width=0)
    with pytest.raises(UserError, match="the student's outputs contain no feature '-1'"):
        OFA(layers=(-1,)).build(Outputs(student), Outputs(teacher))
