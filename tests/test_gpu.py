"""What only a GPU can show; ``pytest --gpu`` runs it where there is one."""

import copy
import subprocess
import sys

import pytest
import torch
from bitwise import same
from lightning.pytorch.callbacks import LambdaCallback
from properties import batch
from settings import SETTINGS
from test_no_sync import cuda_refuses
from tiny import by_gamma, network
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_biaskd import BiasStrategy, DistillationModule, TeacherCache
from lightning_biaskd.__main__ import main
from lightning_biaskd.callbacks import BiasMonitor
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.data.batch import TensorImages
from lightning_biaskd.randomness.bits import random_bits
from lightning_biaskd.training.fill_cache import fill_cache

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and the option --gpu"),
    pytest.mark.filterwarnings("default"),  # of the compiler's making; one of a kind needs a second look
]
CUDA = torch.device("cuda")


def on(device, value):
    """Outputs and what they hold, moved; what has gradients has its own from there on."""
    value = tree_map_only(torch.Tensor, lambda x: x.detach().to(device).requires_grad_(x.requires_grad), value)
    return tree_map_only(nn.Module, lambda module: copy.deepcopy(module).to(device), value)


def leaves(value):
    """The tensors in it that have gradients."""
    return [x for x in tree_leaves(value) if isinstance(x, torch.Tensor) and x.requires_grad]


def answers(name, device):
    """A method's inputs there, the student's with gradients, and the labels."""
    student, teacher, target = batch()
    make = SETTINGS[name].outputs
    return on(device, make(student.requires_grad_())), on(device, make(teacher)), target.to(device)


@pytest.mark.parametrize("bias", [by_gamma("swap"), BiasStrategy()], ids=["paper", "recommended"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_has_the_loss_of_the_cpu(name, bias):
    seen = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        distiller, strategy = (copy.deepcopy(part).double().to(device) for part in (SETTINGS[name].distiller, bias))
        student, teacher, target = answers(name, device)
        loss = strategy(distiller, student, teacher, target).total
        loss.backward()
        gradients = [leaf.grad.cpu() for leaf in leaves(student) if leaf.grad is not None]
        seen.append([loss.detach().cpu(), *gradients])
    assert len(seen[0]) > 1
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", ["swap", "blend", "drop"])
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "KDSVD"])  # PyTorch's eigh waits
def test_no_method_waits(name, mode):
    distiller, bias = copy.deepcopy(SETTINGS[name].distiller).double().to(CUDA), by_gamma(mode).double().to(CUDA)
    student, teacher, target = answers(name, CUDA)
    bias(distiller, student, teacher, target).total.backward()  # the first call loads kernels, which waits
    with cuda_refuses():
        bias(distiller, student, teacher, target).total.backward()


class Moved(DigitsDataModule):
    padding, flip = 1, True


@pytest.mark.parametrize(("jitter", "atol"), [(0.0, 0.0), (0.4, 0.02)])  # jitter rounds to levels of pixels
def test_views_are_those_of_the_cpu(jitter, atol):
    data = Moved(color_jitter=jitter, cutout=2)
    data.setup()
    on_cpu = data.train_set
    on_gpu = TensorImages(on_cpu.image.clone(), on_cpu.target.clone(), on_cpu.index)
    on_gpu.to(CUDA)
    views = []
    for images in (on_cpu, on_gpu):
        drawn = images.__getitems__(list(range(64)))
        device = drawn.image.device
        drawn = drawn._replace(index=drawn.index.to(device))
        views.append(data.normalized(data.training_views(drawn, random_bits(3, 1, drawn.index)).image).cpu())
    torch.testing.assert_close(*views, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def _as_if_first():
    torch._dynamo.reset()


def fitted(trainer, tmp_path, cached=False, compile=False, ckpt_path=None, **options):
    torch.manual_seed(0)
    teacher = network(10)
    cache = TeacherCache(str(tmp_path / "cache"), "float32") if cached else None
    module = DistillationModule(network(10), teacher, compile=compile, teacher_cache=cache)
    data = DigitsDataModule(train_size=640, val_split=0.2)
    if cached:
        fill_cache(module, data, trainer(accelerator="gpu"))
    options = {"accelerator": "gpu", "callbacks": [BiasMonitor()], "max_epochs": 2, **options}
    run = trainer(**options)
    run.fit(module, data, ckpt_path=ckpt_path)
    return run, module


@pytest.fixture
def repeatable():
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        yield


def test_a_fit_ends_as_on_the_cpu(trainer, tmp_path, repeatable):
    runs = [fitted(trainer, tmp_path, accelerator=accelerator)[0] for accelerator in ("cpu", "gpu")]
    losses = [float(run.callback_metrics["train/loss"]) for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("compile", [True, "reduce-overhead"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_compiled_fit_ends_as_the_other(compile, cached, trainer, tmp_path, repeatable):
    seen = [fitted(trainer, tmp_path / str(way), cached, way)[0] for way in (False, compile)]
    losses = [float(run.callback_metrics["train/loss"]) for run in seen]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_every_precision_learns(precision, compile, trainer, tmp_path):
    run, module = fitted(trainer, tmp_path, precision=precision, max_epochs=6, compile=compile)
    assert all(parameter.isfinite().all() for parameter in module.student.parameters())
    assert float(run.callback_metrics["val/acc1"]) > 0.3  # chance is 0.1


def test_a_resumed_fit_has_the_bits_of_one_that_went_on(trainer, tmp_path, repeatable):
    path = tmp_path / "half.ckpt"
    save = LambdaCallback(
        on_train_batch_end=lambda run, *_: None if path.exists() or run.global_step < 7 else run.save_checkpoint(path)
    )
    options = {"callbacks": [save], "limit_val_batches": 0}
    ends = [fitted(trainer, tmp_path, ckpt_path=start, **options)[1] for start in (None, path)]
    assert same(*(module.student.state_dict() for module in ends))


def test_ddp_on_one_gpu_has_the_bits_of_one_process(tmp_path):
    flags = ["--trainer.accelerator", "gpu", "--trainer.max_epochs", "1", "--trainer.deterministic", "true"]
    weights = []
    for strategy in ("auto", "ddp"):
        command = [sys.executable, "-m", "lightning_biaskd", "fit", *flags, "--trainer.strategy", strategy]
        command += ["--trainer.devices", "1", "--trainer.logger.init_args.name", strategy]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        path = tmp_path / "runs" / strategy / "version_0/checkpoints/last.ckpt"
        weights.append(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    assert same(*weights)


def test_too_large_a_batch_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(6e6 / total)
    try:
        with pytest.raises(SystemExit) as end:
            main(["fit", "--trainer.accelerator", "gpu", "--data.batch_size", "1000"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert end.value.code == 2
    assert "lower --data.batch_size" in capsys.readouterr().err.splitlines()[-1]
