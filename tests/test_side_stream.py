"""A teacher on a CUDA stream of its own: the same numbers, and nobody reads them too early."""

from contextlib import contextmanager

import pytest
import torch
from tiny import network, snapshot, unchanged

from lightning_biaskd import KD, DistillationModule, FrozenTeacher
from lightning_biaskd.data import DigitsDataModule

BATCH = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])


class OnGPU(torch.Tensor):
    is_cuda = True
    device = torch.device("cuda")


@pytest.fixture
def calls(monkeypatch):
    """The order in which teacher, student and loss run, and streams change."""
    calls = []

    @contextmanager
    def side(device):
        calls.append("side stream")
        yield
        calls.append("first stream")

    monkeypatch.setattr("lightning_biaskd.teachers.frozen.on_side_stream", side)
    monkeypatch.setattr("lightning_biaskd.teachers.frozen.join_side_stream", lambda device: calls.append("join"))
    return calls


def recorded(calls, stream):
    class Loss(KD):
        def forward(self, *args):
            calls.append("loss")
            return super().forward(*args)

    teacher, student = network(), network()
    teacher.register_forward_hook(lambda *_: calls.append("teacher"))
    student.register_forward_hook(lambda *_: calls.append("student"))
    module = DistillationModule(student, FrozenTeacher(teacher, backend="plain", stream=stream), Loss())
    module.losses(BATCH, 1)  # the first batch also tries the teacher out
    calls.clear()
    return module


def test_the_student_runs_during_the_teacher_and_both_are_joined_before_the_loss(calls):
    image, target = BATCH
    recorded(calls, stream=True).losses((image.as_subclass(OnGPU), target), 1)
    assert calls == ["side stream", "teacher", "first stream", "student", "join", "loss"]
    recorded(calls, stream=False).losses((image.as_subclass(OnGPU), target), 1)
    assert calls == ["teacher", "student", "loss"]


def test_outputs_of_a_call_are_ready(calls):
    module = recorded(calls, stream=True)
    module.teacher(BATCH[0].as_subclass(OnGPU))
    assert calls == ["side stream", "teacher", "first stream", "join"]


def test_there_is_no_stream_on_the_cpu(calls):
    recorded(calls, stream=True).losses(BATCH, 1)
    assert calls == ["teacher", "student", "loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the CPU has no streams")
@pytest.mark.parametrize("compile", [False, True])
def test_training_ends_with_the_same_weights(compile, trainer, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    ends = []
    for stream in (False, True):
        torch.manual_seed(0)
        student, teacher = network(10), FrozenTeacher(network(10), stream=stream)
        module = DistillationModule(student, teacher, compile=compile)
        trainer(accelerator="gpu", max_epochs=2, limit_val_batches=0).fit(module, DigitsDataModule(train_size=640))
        ends.append(module.student)
    assert unchanged(snapshot(ends[0]), ends[1])
