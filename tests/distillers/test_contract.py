"""What every method declares, and what sums and wrappers make of it."""

import inspect

import pytest
import torch
from properties import batch
from tiny import TinyData, by_gamma, network

from lightning_biaskd import (
    DKD,
    KD,
    BiasStrategy,
    DistillationModule,
    Distiller,
    Needs,
    Outputs,
    UserError,
    WeightedSum,
    distillers,
)
from lightning_biaskd.bias import Plain
from lightning_biaskd.distiller import Wrapper
from lightning_biaskd.distillers import CRD, DIST, MLKD, OFD, PKT, RC, SP, FitNet, ReviewKD, WKDFeature


class Twice(Wrapper):
    def forward(self, student, teacher, target, keep=None):
        return 2 * self.distiller(student, teacher, target, keep)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda method: method,
        lambda method: WeightedSum([(method, 1.0)]),
        lambda method: WeightedSum([(WeightedSum([(Twice(method), 2.0)]), 0.25)]),
        lambda method: WeightedSum([(Twice(WeightedSum([(method, 1.0)])), 0.5)]),
    ],
)
def test_a_method_warms_up_alike_wherever_it_stands(wrap):
    student, teacher, target = batch()
    outputs = Outputs(student), Outputs(teacher), target
    full = DKD(warmup_epochs=0)(*outputs)
    everything = by_gamma("none", "batch", "ramp")
    everything.gamma.fill_(1.0)
    for epoch, factor in ((0, 1 / 20), (9, 0.5), (19, 1.0), (50, 1.0), (4, 0.25)):
        method = wrap(DKD(warmup_epochs=20))
        method.set_epoch(epoch)
        torch.testing.assert_close(method(*outputs), factor * full)
        for strategy in (Plain(), everything):
            torch.testing.assert_close(strategy(method, *outputs).total, factor * full.mean())
        module = DistillationModule(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), method, None)
        module.distiller.set_epoch(epoch)
        step = module.distillation.step(*outputs)
        torch.testing.assert_close(step.logged["train/loss_kd"], factor * full.mean())
        assert not method.state_dict()


def test_a_sum_and_a_wrapper_need_what_their_parts_do():
    parts = [(FitNet(-2, "layer1"), 1.0), (MLKD(views=2), 1.0), (CRD(), 1.0), (RC(), 0.1)]
    needs = Needs(("-2",), ("layer1",), embedding=True, index=True, pairwise=True, views=2)
    assert WeightedSum(parts).needs == WeightedSum([(WeightedSum(parts), 1.0)]).needs == needs
    assert Twice(WeightedSum(parts)).needs == needs
    with pytest.raises(UserError, match="give both the same number of views"):
        WeightedSum([(MLKD(views=2), 1.0), (MLKD(views=3), 1.0)])


@pytest.mark.parametrize(
    ("methods", "reads"),
    [([KD()], "logits"), ([SP(), KD(), RC()], "logits"), ([RC(), SP()], "features"), ([RC()], "nothing")],
)
def test_a_sum_and_a_wrapper_read_what_their_parts_do(methods, reads):
    method = WeightedSum([(method, 1.0) for method in methods])
    assert method.reads == Twice(method).reads == reads


def test_a_layer_may_be_compared_with_several_of_the_teacher():
    method = FitNet((-1, -1), ("layer2", "layer3"))
    features = {"-1": torch.zeros(2, 3, 4, 4), "layer2": torch.ones(2, 3, 4, 4), "layer3": torch.ones(2, 5, 4, 4)}
    outputs = Outputs(torch.zeros(2, 3), features)
    method.build(outputs, outputs)
    assert method(outputs, outputs, torch.tensor([0, 1])).shape == (2,)


@pytest.mark.parametrize(
    ("attribute", "value", "remedy"),
    [
        ("layers", ("-1",), r"needs = Needs\(layers=…\)"),
        ("teacher_layers", ("-1",), r"needs = Needs\(teacher_layers=…\)"),
        ("embedding", True, r"needs = Needs\(embedding=…\)"),
        ("pairwise", True, r"needs = Needs\(pairwise=…\)"),
        ("views", 2, r"needs = Needs\(views=…\)"),
        ("remembers", True, r"needs = Needs\(index=True\)"),
        ("rectifiable", False, 'reads = "features"'),
        ("reads_teacher", False, 'reads = "nothing"'),
        ("answer", lambda self, student: student, "outputs_of"),
    ],
)
def test_an_attribute_of_the_first_version_is_refused(attribute, value, remedy):
    with pytest.raises(UserError, match=f"Old sets '{attribute}', an attribute of version 0.1: set {remedy} instead"):
        type("Old", (Distiller,), {attribute: value})
    with pytest.raises(UserError, match=f"Distiller sets '{attribute}'"):
        setattr(Distiller(), attribute, value)


def test_a_module_may_have_the_name_of_such_an_attribute():
    method = Distiller()
    method.embedding = torch.nn.Linear(2, 3)
    assert [name for name, _ in method.named_parameters()] == ["embedding.weight", "embedding.bias"]


def test_a_default_stands_once_in_the_constructor():
    exported = [getattr(distillers, name) for name in distillers.__all__]
    methods = [value for value in exported if inspect.isclass(value)]
    for function in filter(inspect.isfunction, exported):
        defaults = {name for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty}
        for method in methods:
            if method.__module__ == function.__module__:
                assert not defaults & inspect.signature(method).parameters.keys(), function.__name__


def test_what_a_strategy_corrects_and_logs():
    student, teacher, target = batch()
    outputs = Outputs(student), Outputs(teacher), target
    for strategy in (by_gamma("none"), by_gamma("drop"), Plain()):
        assert strategy.rectified(KD(), teacher, target) is None
    assert by_gamma().rectified(SP(), teacher, target) is None
    assert not torch.equal(by_gamma().rectified(KD(), teacher, target), teacher)
    plain, bias = Plain(), BiasStrategy.paper()
    assert list(plain.logged(plain(KD(), *outputs))) == ["bias/wrong_rate"]
    assert list(bias.logged(bias(KD(), *outputs))) == [
        "train/loss_right",
        "train/loss_rectified",
        "bias/wrong_rate",
        "bias/gamma",
    ]
    assert repr(bias) == repr(by_gamma("blend", "group", "complement"))
    assert repr(plain) == "Plain()"


@pytest.mark.parametrize("method", [FitNet(-1), OFD(-1), ReviewKD(-1), WKDFeature()], ids=lambda m: type(m).__name__)
def test_one_image_with_a_map_of_one_pixel(method):
    def outputs(rows):
        features = dict.fromkeys(("-1", "-1:pre"), torch.randn(rows, 4, 1, 1))
        return Outputs(torch.zeros(rows, 3), features, features["-1"].flatten(1))

    method.build(outputs(4), outputs(4))
    assert method.train()(outputs(1), outputs(1), torch.tensor([0])).isfinite().all()


@pytest.mark.parametrize("method", [PKT(), WeightedSum([(KD(), 1.0), (DIST(), 1.0)])], ids=["alone", "in a sum"])
def test_batches_of_one_relate_no_samples(method, trainer):
    module = DistillationModule(network(), network(), method)
    with pytest.raises(UserError, match="compares the samples of a batch .*: raise data.batch_size"):
        trainer(max_epochs=1).fit(module, TinyData(batch_size=1))
    trainer(max_epochs=1).fit(module, TinyData(batch_size=47))  # the last has one


def test_no_method_takes_a_number_without_meaning():
    methods = [kind for kind in vars(distillers).values() if inspect.isclass(kind) and issubclass(kind, Distiller)]
    tried = 0
    for kind in methods:
        for name, parameter in inspect.signature(kind).parameters.items():
            weight = name in ("warmup_epochs", "weight", "alpha", "beta", "gamma") or name.endswith("_weight")
            values = [-1] * weight + [float("nan")] * isinstance(parameter.default, float)
            for value in values:
                tried += 1
                with pytest.raises(UserError, match=name):
                    kind(**{name: value})
    assert tried > 60


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_sum_refuses_weights_without_meaning(weight):
    with pytest.raises(UserError, match="the weight of KD must be 0 or a positive number"):
        WeightedSum([(DKD(), 1.0), (KD(), weight)])
