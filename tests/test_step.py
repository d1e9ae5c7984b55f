"""One step, in four loops."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from tiny import CLASSES, TinyData, by_gamma, network, snapshot, unchanged

from lightning_biaskd import (
    DKD,
    KD,
    DistillationModule,
    FrozenTeacher,
    UserError,
    WeightedSum,
    load_weights,
)
from lightning_biaskd.bias import linear
from lightning_biaskd.distillers import CRD, FitNet
from lightning_biaskd.training.step import Distillation

IMAGE, TARGET = torch.randn(12, 1, 6, 6), torch.arange(12) % CLASSES
METHODS = {
    "kd": lambda: (KD(2.0), by_gamma("swap", balance="ramp")),
    "plain dkd": lambda: (DKD(warmup_epochs=4), None),
    "features": lambda: (WeightedSum([(KD(), 1.0), (FitNet(layers="2"), 10.0)]), by_gamma()),
}


def distillation(name):
    torch.manual_seed(1)
    step = Distillation(network(), network(width=6), *METHODS[name](), ce_weight=0.3, kd_weight=0.9)
    step.rehearse(IMAGE)
    step.set_progress(1, 4)
    return step


def plain_loop(step):
    return step(IMAGE, TARGET).loss


def fabric_loop(step):
    fabric = Fabric(accelerator="cpu", devices=1)
    module, optimizer = fabric.setup(step, torch.optim.SGD(step.parameters(), lr=0.1))
    loss = module(IMAGE, TARGET).loss
    fabric.backward(loss)
    optimizer.step()
    return loss


def hugging_face_loop(step):
    transformers = pytest.importorskip("transformers")
    losses = []

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            losses.append(model(inputs["pixel_values"], inputs["labels"]).loss)
            return losses[-1]

    samples = [{"pixel_values": image, "labels": int(target)} for image, target in zip(IMAGE, TARGET, strict=True)]
    options = {"remove_unused_columns": False, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        "unused", max_steps=1, per_device_train_batch_size=12, use_cpu=True, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(step, arguments, train_dataset=samples).train()
    return losses[0]


@pytest.mark.parametrize("loop", [plain_loop, fabric_loop, hugging_face_loop])
@pytest.mark.parametrize("name", METHODS)
def test_every_loop_has_the_first_loss_of_the_lightning_module(name, loop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    module = DistillationModule(network(), network(width=6), *METHODS[name](), ce_weight=0.3, kd_weight=0.9)
    module.rehearse(IMAGE)
    module.distillation.set_progress(1, 4)
    expected = module.train().losses((IMAGE, TARGET), 0).loss
    actual = loop(distillation(name).train())
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-6, atol=1e-6)


def test_the_loss_is_the_sum_of_its_parts():
    step = distillation("kd").eval()
    result = step(IMAGE, TARGET)
    ce = F.cross_entropy(step.student(IMAGE), TARGET)
    kd = step.bias(step.distiller, step.outputs_of(IMAGE), step.teacher(IMAGE), TARGET).total
    torch.testing.assert_close(result.loss, 0.3 * ce + 0.9 * kd)
    assert result.student.logits.requires_grad
    assert not result.teacher.logits.requires_grad
    assert not any(value.requires_grad for value in result.logged.values())


def test_it_trains_the_student_and_never_the_teacher(tmp_path):
    step = distillation("features")
    teacher, student = snapshot(step.teacher.model), snapshot(step.student)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        step.train()(IMAGE, TARGET).loss.backward()
        optimizer.step()
    assert unchanged(teacher, step.teacher.model)
    assert not unchanged(student, step.student)
    assert not any(name.startswith("teacher") for name in step.state_dict())
    torch.save(step.state_dict(), tmp_path / "step.pt")
    alone = network()
    load_weights(alone, tmp_path / "step.pt")
    assert unchanged(snapshot(step.student), alone)


def test_progress_moves_gamma_and_the_warm_up():
    step = distillation("kd")
    step.set_progress(1, 4, schedule=linear)
    assert step.bias.gamma == 0.25
    warm = distillation("plain dkd")
    losses = [(warm.set_progress(epoch, 4), warm.eval()(IMAGE, TARGET).logged["train/loss_kd"])[1] for epoch in (0, 3)]
    torch.testing.assert_close(4 * losses[0], losses[1])


def test_a_method_with_a_memory_reads_the_index():
    step = Distillation(network(), network(), CRD(dim=4, negatives=8), bias=None)
    step.rehearse(IMAGE, num_samples=20)
    assert step(IMAGE, TARGET, torch.arange(12)).loss.isfinite()


def test_what_does_not_fit_is_one_line():
    shared = network()
    with pytest.raises(UserError, match="share parameters"):
        Distillation(shared, FrozenTeacher(shared))
    with pytest.raises(UserError, match="the teacher gives 9 classes and the student 6"):
        Distillation(network(), network(classes=9))(IMAGE, TARGET)
    with pytest.raises(UserError, match="mixed images"):
        Distillation(network(), network())(IMAGE, F.one_hot(TARGET, CLASSES).float())


def test_copies_are_independent():
    step = distillation("features")
    twin = copy.deepcopy(step)
    before = snapshot(step)
    torch.optim.SGD(twin.parameters(), lr=1.0).step()
    twin(IMAGE, TARGET).loss.backward()
    torch.optim.SGD(twin.parameters(), lr=1.0).step()
    assert unchanged(before, step)
    assert not unchanged(before, twin)


def test_the_lightning_module_trains_the_parts_of_its_step(trainer):
    module = DistillationModule(network(), network())
    before = snapshot(module.student)
    trainer().fit(module, TinyData())
    assert module.distillation.student is module.student
    assert not unchanged(before, module.distillation.student)
    counts = {f"bias.{name}" for name in module.bias.state_dict()}
    assert module.state_dict().keys() == counts | {f"model.{name}" for name in before}


@pytest.mark.parametrize(
    "options", [{"kd_weight": -1.0}, {"ce_weight": float("nan")}, {"label_smoothing": -0.5}, {"label_smoothing": 1.5}]
)
def test_weights_without_meaning_are_refused(options):
    for module in (Distillation, DistillationModule):
        with pytest.raises(UserError, match=next(iter(options))):
            module(network(), network(), **options)


def test_labels_are_integers_of_any_type_one_for_each_image():
    step = distillation("kd")
    losses = [step(IMAGE, TARGET.to(kind)).loss for kind in (torch.int64, torch.int32, torch.uint8)]
    assert losses[0] == losses[1] == losses[2]
    for labels, told in ((TARGET[:, None], "not int64 of shape (12, 1)"), (TARGET.float(), "not float32 of shape")):
        with pytest.raises(UserError, match="integer labels of shape") as refused:
            step(IMAGE, labels)
        assert told in str(refused.value)
    with pytest.raises(UserError, match="mixed images have no single label"):
        step(IMAGE, torch.rand(12, CLASSES))
