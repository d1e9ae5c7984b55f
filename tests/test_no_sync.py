"""No step asks for a value of the device: on a GPU that would wait for it.

The CPU has no such waits, so the operations that cause them elsewhere are refused. Where there is a GPU, its own debug
mode watches too.
"""

import copy
import warnings
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch import Callback
from properties import batch
from settings import SETTINGS
from tiny import by_gamma, network
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_biaskd import DistillationModule, TeacherCache
from lightning_biaskd.callbacks import BiasMonitor, DynamicWeights
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.distillers import CRD, DKD, FitNet, WeightedSum
from lightning_biaskd.training.fill_cache import fill_cache

WAITS = {
    *("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero"),
    "aten.lift_fresh",  # a constant, which would be copied
    *("aten.repeat_interleave.Tensor", "aten._unique2", "aten.unique_dim", "aten.bincount"),
}


class NoSync(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        masked = name.startswith("aten.index.") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if masked or name in WAITS or name.rsplit(".", 1)[0] in WAITS:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(),
        lambda x: bool(x > 0),
        lambda x: torch.arange(3)[torch.tensor([True, False, True])],
        lambda x: x.nonzero(),
        lambda x: float(x),
        lambda x: torch.equal(x, x),
        lambda x: x + torch.tensor([1.0], device=x.device),
    ],
)
def test_the_test_can_fail(wait):
    x = torch.ones(())
    with NoSync(), pytest.raises(AssertionError, match="waits for the device"):
        wait(x)


@pytest.mark.parametrize("mode", ["swap", "blend", "onehot", "revise", "none", "drop"])
@pytest.mark.parametrize("name", SETTINGS)
def test_no_method_waits(name, mode):
    distiller, make = copy.deepcopy(SETTINGS[name].distiller), SETTINGS[name].outputs
    student, teacher, target = batch()
    answers = make(student.requires_grad_()), make(teacher)
    bias = by_gamma(mode).double()
    with NoSync():
        bias(distiller, *answers, target).total.backward()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="asks the GPU itself")


@contextmanager
def cuda_refuses():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it doesn't know every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Watched(Callback):
    """Refuses waits from the first hook of a step to the last but in steps that are logged, and in the first."""

    def __init__(self, refuse=NoSync):
        self.refuse, self.mode, self.steps = refuse, None, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx > 0 and (trainer.global_step + 1) % trainer.log_every_n_steps:
            self.mode = self.refuse()
            self.mode.__enter__()

    def on_train_batch_end(self, *_):
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode, self.steps = None, self.steps + 1


@pytest.mark.parametrize("method", [DKD(), WeightedSum([(CRD(negatives=8), 1.0), (FitNet(-1), 1.0)])])
def test_no_step_waits(method, trainer, monkeypatch):
    # as on a GPU: values are read in the first batch only
    monkeypatch.setattr("lightning_biaskd.training.checks.may_read", lambda _, batch_idx: batch_idx == 0)
    watched = Watched()
    module = DistillationModule(network(10), network(10), method, by_gamma("swap"))
    callbacks = [watched, DynamicWeights(interval="step"), BiasMonitor()]
    run = trainer(callbacks=callbacks, limit_val_batches=0, log_every_n_steps=5, max_epochs=2)
    run.fit(module, DigitsDataModule(train_size=640))
    assert watched.steps == 2 * 7  # of ten in an epoch: the first, and the fifth and tenth, are not watched


@needs_gpu
@pytest.mark.parametrize("cached", [False, True])
def test_no_step_waits_for_the_gpu(cached, trainer, tmp_path):
    data = DigitsDataModule(train_size=640)
    cache = TeacherCache(str(tmp_path / "cache"), "float32") if cached else None
    teacher = network(10)

    def module():
        return DistillationModule(network(10), copy.deepcopy(teacher), DKD(), by_gamma("swap"), teacher_cache=cache)

    if cached:
        fill_cache(module(), data, trainer(accelerator="gpu"))
    watched = Watched(cuda_refuses)
    run = trainer(accelerator="gpu", callbacks=[watched], limit_val_batches=0, log_every_n_steps=5, max_epochs=2)
    run.fit(module(), data)
    assert watched.steps == 2 * 7
