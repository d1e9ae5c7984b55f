import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import TinyData, by_gamma, network, snapshot, unchanged
from torch import nn

from lightning_biaskd import DistillationModule, FrozenTeacher, UserError
from lightning_biaskd.distillers import SDD
from lightning_biaskd.models import resnet8


def test_the_teacher_is_bit_equal_after_a_fit_and_in_no_checkpoint(trainer, tmp_path):
    network_t = network()
    module = DistillationModule(network(width=2), network_t, bias=None)
    before, student_before = snapshot(network_t), snapshot(module.student)
    run = trainer(
        max_epochs=2, enable_checkpointing=True, callbacks=[ModelCheckpoint(dirpath=tmp_path, save_last=True)]
    )
    run.fit(module, TinyData())
    assert unchanged(before, network_t)
    assert not unchanged(student_before, module.student)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"model.{name}" for name in module.student.state_dict()}
    size = sum(p.numel() for p in module.student.parameters())
    assert sum(p.numel() for p in module.parameters()) == size
    optimised = [p for group in run.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in optimised} == {id(p) for p in module.student.parameters()}


def test_eval_survives_every_train():
    teacher = FrozenTeacher(network())
    outer = nn.Sequential(teacher)
    outer.train()
    teacher.train()
    assert not any(module.training for module in teacher.model.modules())
    before = snapshot(teacher.model)
    outer[0](torch.randn(4, 1, 6, 6))
    assert unchanged(before, teacher.model)


def test_records_no_graph():
    image = torch.randn(4, 1, 6, 6, requires_grad=True)
    logits = FrozenTeacher(network())(image).logits
    assert logits.grad_fn is None
    assert not logits.requires_grad


def test_holds_nothing_that_others_would_train_save_or_send():
    teacher = FrozenTeacher(network())
    assert not list(teacher.parameters())
    assert not teacher.state_dict()
    assert len(list(teacher.modules())) == 1
    inside = snapshot(teacher.model)
    nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(teacher))
    assert unchanged(inside, teacher.model)
    assert any(type(module) is nn.BatchNorm2d for module in teacher.model.modules())


def test_follows_its_module_to_another_type():
    module = DistillationModule(network(), network())
    module.double()
    assert {p.dtype for p in module.teacher.model.parameters()} == {torch.float64}
    assert module.teacher(torch.zeros(1, 1, 6, 6, dtype=torch.float64)).logits.dtype == torch.float64


def test_reads_named_layers():
    outputs = FrozenTeacher(network(), layers=["2"])(torch.zeros(3, 1, 6, 6))
    assert outputs.features["2"].shape == (3, 4, 6, 6)


def test_a_network_cannot_teach_itself():
    shared = network()
    with pytest.raises(UserError, match="share parameters"):
        DistillationModule(shared, FrozenTeacher(shared))


def test_compiles_with_the_student_and_the_strategy():
    module = DistillationModule(network(), network(), bias=by_gamma("swap"))

    def step(image, target):
        teacher, student = module.teacher(image), module.outputs_of(image)
        return module.bias(module.distiller, student, teacher, target).total

    image, target = torch.randn(8, 1, 6, 6), torch.arange(8) % 6
    module.eval()
    torch._dynamo.reset()
    expected = step(image, target)  # the first call prepares the teacher
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image, target), expected)


def pair_with_a_head():
    module = DistillationModule(resnet8(6, 1), resnet8(6, 1), SDD(), bias=None)
    return module, torch.randn(8, 1, 8, 8), torch.arange(8) % 6


def test_the_heads_are_applied_where_they_are_and_owned_once():
    module, image, target = pair_with_a_head()
    before = snapshot(module.teacher.model)
    module.distillation(image, target).loss.backward()
    assert module.student.fc.weight.grad.any()
    teacher = module.teacher(image)
    assert teacher.head(teacher.features["-1"].mean((2, 3))).grad_fn is None
    assert unchanged(before, module.teacher.model)
    assert all(p.grad is None for p in module.teacher.model.parameters())
    assert set(module.state_dict()) == {f"model.{name}" for name in module.student.state_dict()}


def test_compiles_with_the_heads():
    module, image, target = pair_with_a_head()
    module.rehearse(image)
    module.eval()
    torch._dynamo.reset()

    def step(image, target):
        return module.distiller(module.outputs_of(image), module.teacher(image), target)

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image, target), step(image, target))
