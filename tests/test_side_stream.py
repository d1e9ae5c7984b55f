"""A teacher on a stream of its own: the same numbers, and nobody reads them too early."""

from contextlib import contextmanager

import pytest
import torch
from tiny import network, snapshot, unchanged

from lightning_biaskd import DistillationModule
from lightning_biaskd.data import DigitsDataModule


class OnGPU(torch.Tensor):
    is_cuda = True


def test_the_student_runs_beside_the_teacher_and_both_are_joined_before_the_loss(monkeypatch):
    calls = []

    class Recorded(DistillationModule):
        def ask_teacher(self, batch):
            calls.append("teacher")
            return super().ask_teacher(batch)

        def answer(self, image):
            calls.append("student")
            return super().answer(image)

        def check_batch(self, *args):
            calls.append("losses")
            super().check_batch(*args)

    @contextmanager
    def beside(device):
        calls.append("side stream")
        yield
        calls.append("first stream")

    monkeypatch.setattr("lightning_biaskd.training.distillation.beside", beside)
    monkeypatch.setattr("lightning_biaskd.training.distillation.join", lambda device: calls.append("join"))
    batch = torch.randn(4, 1, 6, 6).as_subclass(OnGPU), torch.tensor([0, 1, 2, 0])
    Recorded(network(), network(), teacher_stream=True).losses(batch, 0)
    assert calls == ["side stream", "teacher", "first stream", "student", "join", "losses"]
    calls.clear()
    Recorded(network(), network()).losses(batch, 0)
    assert calls == ["teacher", "student", "losses"]


def test_there_is_no_stream_on_the_cpu():
    batch = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    student, teacher = network(), network()
    plain, beside = (DistillationModule(student, teacher, teacher_stream=own) for own in (False, True))
    assert torch.equal(plain.losses(batch, 0)["train/loss"], beside.losses(batch, 0)["train/loss"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the CPU has no streams")
@pytest.mark.parametrize("compile", [False, True])
def test_training_ends_with_the_same_weights(compile, trainer, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    ends = []
    for own in (False, True):
        torch.manual_seed(0)
        module = DistillationModule(network(10), network(10), teacher_stream=own, compile=compile)
        trainer(accelerator="gpu", max_epochs=2, limit_val_batches=0).fit(module, DigitsDataModule(train_size=640))
        ends.append(module.student)
    assert unchanged(snapshot(ends[0]), ends[1])
