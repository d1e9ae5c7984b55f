"""A student with two heads: the class head learns the labels, the token's head learns from the teacher."""

import pytest
import torch
import torch.nn.functional as F
from logit_settings import two_heads
from properties import batch
from tiny import CLASSES, CompilationCount, TinyData, network, snapshot, unchanged

from lightning_biaskd import (
    KD,
    BiasStrategy,
    DistillationModule,
    InputSpec,
    Outputs,
    UserError,
    WeightedSum,
    export_student,
    load_student,
)
from lightning_biaskd.distillers import (
    DistillationToken,
    LogitStandardization,
    SimKD,
    hard_loss,
    kd_loss,
)
from lightning_biaskd.training.step import Distillation

IMAGE = torch.randn(5, 1, 6, 6)
TARGET = torch.arange(5)
TINY = {
    "img_size": 6,
    "patch_size": 3,
    "in_chans": 1,
    "num_classes": CLASSES,
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
}


def of_timm(**kwargs):
    deit = pytest.importorskip("timm.models.deit")
    return deit.VisionTransformerDistilled(**(TINY | kwargs))


def of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.DeiTConfig(
        image_size=6, patch_size=3, num_channels=1, num_labels=CLASSES, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    return transformers.DeiTForImageClassificationWithTeacher(config)


NAMES = {of_timm: ("head", "head_dist"), of_transformers: ("cls_classifier", "distillation_classifier")}
every_library = pytest.mark.parametrize("student", [of_timm, of_transformers])


def corrected(mode="swap"):
    bias = BiasStrategy(mode, "batch", "ramp", trust=None, label_trust=None)
    bias.gamma.fill_(1.0)
    return bias


def heads_of(student, image, names):
    """Both heads' logits, from the tokens that they read."""
    read = {}
    hooks = [
        student.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: read.update({name: out}))
        for name in names
    ]
    student(image)
    for hook in hooks:
        hook.remove()
    return [read[name] for name in names]


@every_library
def test_each_head_learns_from_its_own(student):
    names = NAMES[student]
    fit = DistillationModule(
        student(), network(), DistillationToken(None, *names), None, ce_weight=0.5, kd_weight=0.5
    ).train()
    fit.rehearse(IMAGE)
    step = fit.losses((IMAGE, TARGET), 0)
    by_class, by_token = heads_of(fit.student, IMAGE, names)
    teacher = fit.teacher(IMAGE).logits
    expected = 0.5 * F.cross_entropy(by_class, TARGET) + 0.5 * F.cross_entropy(by_token, teacher.argmax(1))
    torch.testing.assert_close(step.loss, expected)
    (ce,) = torch.autograd.grad(F.cross_entropy(by_class, TARGET), fit.student.get_submodule(names[0]).weight)
    step.loss.backward()
    torch.testing.assert_close(fit.student.get_submodule(names[0]).weight.grad, 0.5 * ce)
    assert all(parameter.grad is not None for parameter in fit.student.parameters())


@every_library
@pytest.mark.parametrize(
    "bias", [corrected(), BiasStrategy("revise", "batch", "equal", trust="run", label_trust="run")]
)
def test_the_mean_of_both_heads_is_evaluated_and_deployed(student, bias, trainer):
    names = NAMES[student]
    fit = DistillationModule(student(), network(), DistillationToken(None, *names), bias)
    run = trainer(max_epochs=1)
    run.fit(fit, TinyData())
    fit.eval()
    mean = sum(heads_of(fit.student, IMAGE, names)) / 2
    torch.testing.assert_close(fit.outputs_of(IMAGE).logits, mean)
    output = fit.deployed().eval()(IMAGE)
    torch.testing.assert_close(getattr(output, "logits", output), mean)
    (result,) = run.test(fit, TinyData(), verbose=False)
    logits = [sum(heads_of(fit.student, image, names)) / 2 for image, _ in TinyData().loader]
    right = torch.cat(logits).argmax(1) == torch.cat([target for _, target in TinyData().loader])
    assert result["test/acc1"] == pytest.approx(right.float().mean().item())


def test_the_exported_network_gives_the_mean(tmp_path):
    fit = DistillationModule(of_timm(), network(), DistillationToken(), None)
    fit.rehearse(IMAGE)
    path = export_student(fit.deployed(), tmp_path / "net.pt2", InputSpec([0.5], [0.25], size=6))
    mean = sum(heads_of(fit.student.eval(), IMAGE, NAMES[of_timm])) / 2
    torch.testing.assert_close(load_student(path, trusted=True)(IMAGE), mean, rtol=1e-5, atol=1e-5)


def test_a_correction_makes_the_label_the_hard_label():
    student, teacher, target = batch()
    student, teacher = two_heads(student), Outputs(teacher)
    for mode in ("swap", "onehot", "revise"):
        total = corrected(mode)(DistillationToken(), student, teacher, target).total
        torch.testing.assert_close(total, F.cross_entropy(student.features["head_dist"], target))
    loss = hard_loss(student.features["head_dist"], teacher.logits)
    right = teacher.logits.argmax(1) == target
    torch.testing.assert_close(
        corrected("drop")(DistillationToken(), student, teacher, target).total, loss[right].sum() / 8
    )


def test_a_sum_and_an_inner_wrapper():
    student, teacher, target = batch()
    heads = two_heads(student)
    method = WeightedSum([(DistillationToken(LogitStandardization(KD(2.0), weight=3.0)), 1.0), (KD(), 0.5)])
    seen = method.outputs_of(heads)
    torch.testing.assert_close(seen.logits, heads.features["head"])
    token = LogitStandardization(KD(2.0), weight=3.0)(Outputs(heads.features["head_dist"]), Outputs(teacher), target)
    expected = token + 0.5 * kd_loss(heads.features["head"], teacher, 4.0)
    torch.testing.assert_close(method(seen, Outputs(teacher), target), expected)
    assert method.eval().outputs_of(heads) is heads


def test_a_run_goes_on_exactly(trainer, tmp_path):
    def fitted(epochs, **kwargs):
        torch.manual_seed(0)
        fit = DistillationModule(of_timm(), network(), DistillationToken(KD(3.0)), corrected())
        run = trainer(max_epochs=epochs)
        run.fit(fit, TinyData(), **kwargs)
        return fit, run

    whole, _ = fitted(2)
    _, run = fitted(1)
    run.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fitted(2, ckpt_path=tmp_path / "half.ckpt")
    assert unchanged(snapshot(whole), resumed)


def test_the_whole_step_compiles_as_one_graph():
    distillation = Distillation(of_timm(), network(), DistillationToken(), corrected())
    distillation.rehearse(IMAGE)
    count = CompilationCount()
    compiled = torch.compile(lambda x, y: distillation(x, y).loss, backend=count, fullgraph=True)
    for gamma in (0.0, 0.5):
        distillation.bias.gamma.fill_(gamma)
        torch.testing.assert_close(compiled(IMAGE, TARGET), distillation(IMAGE, TARGET).loss)
    assert count.graphs == 1


def test_refusals():
    with pytest.raises(UserError, match="needs two heads, and got 'head' for both: name two layers"):
        DistillationToken(token_head="head")
    with pytest.raises(UserError, match="SimKD reads features: put it beside DistillationToken in a WeightedSum"):
        DistillationToken(SimKD())
    with pytest.raises(UserError, match="wraps one method: in a sum, wrap each part"):
        DistillationToken(WeightedSum([(KD(4.0), 1.0)]))
    with pytest.raises(UserError, match=r"write DistillationToken\(LogitStandardization\(…\)\)"):
        LogitStandardization(DistillationToken(KD()))
    with pytest.raises(UserError, match="Sequential has no layer 'head'"):
        DistillationModule(network(), network(), DistillationToken())
    fit = DistillationModule(of_timm(), network(), DistillationToken(head="norm"))
    with pytest.raises(UserError, match=r"two heads with logits \(5, 6\), but layer 'norm' gives \(5, 6, 8\): name"):
        fit.rehearse(IMAGE)
    student = of_timm()
    student.forward_head = lambda tokens: student.head(tokens[:, 0])
    with pytest.raises(UserError, match="VisionTransformerDistilled has a layer 'head_dist', but did not run it: name"):
        DistillationModule(student, network(), DistillationToken()).rehearse(IMAGE)
    student = of_timm()
    student.set_distilled_training(True)
    with pytest.raises(UserError, match=r"returns two logits: call set_distilled_training\(False\)"):
        DistillationModule(student, network(), DistillationToken()).rehearse(IMAGE)
