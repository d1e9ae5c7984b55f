"""N processes train as one: real processes over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_biaskd import DKD, KD, BiasStrategy, Outputs, WeightedSum

SIZE, CLASSES = 8, 5
DISTILLER = WeightedSum([(KD(), 1.0), (DKD(), 0.5)])


def joined_batch():
    """Rank 0 of two has no wrong sample, rank 1 nothing but wrong ones."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(SIZE, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(SIZE, CLASSES, generator=generator, dtype=torch.float64)
    target = torch.cat([teacher[: SIZE // 2].argmax(1), teacher[SIZE // 2 :].argmin(1)])
    return image, teacher, target


def gradient(bias, image, teacher, target):
    weight = torch.linspace(-1, 1, CLASSES * 3, dtype=torch.float64).view(CLASSES, 3).requires_grad_()
    loss = bias(DISTILLER, Outputs(image @ weight.T), Outputs(teacher), target)
    loss.total.backward()
    return weight.grad, loss


def run_rank(rank, world, folder, sync):
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    part = slice(rank * SIZE // world, (rank + 1) * SIZE // world)
    results = {}
    for mode in ("swap", "blend", "onehot", "revise", "none", "drop"):
        for normalize in ("group", "batch"):
            bias = BiasStrategy(mode, normalize, sync=sync).double()
            bias.gamma.fill_(0.3)
            grad, loss = gradient(bias, *(tensor[part] for tensor in joined_batch()))
            values = torch.stack(list(loss[:3]))
            for tensor in (grad, values):
                dist.all_reduce(tensor)
                tensor /= world  # as DDP averages gradients and Lightning logged values
            results[mode, normalize] = grad, values
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


def compare(world, folder, sync):
    """Whether the gradient and the parts of the loss are those of one process on the joined batch, by mode."""
    mp.spawn(run_rank, (world, str(folder), sync), nprocs=world)
    same = {}
    for (mode, normalize), (grad, values) in torch.load(folder / "results.pt").items():
        bias = BiasStrategy(mode, normalize).double()
        bias.gamma.fill_(0.3)
        expected, loss = gradient(bias, *joined_batch())
        same[mode, normalize] = torch.allclose(grad, expected, rtol=1e-6, atol=0) and torch.allclose(
            values, torch.stack(list(loss[:3])), rtol=1e-6
        )
    return same


@pytest.mark.parametrize("world", [2, 4])
def test_the_gradient_of_several_processes_is_that_of_one(world, tmp_path):
    assert all(compare(world, tmp_path, sync=True).values())


def test_without_synchronised_counts_it_is_another_method(tmp_path):
    same = compare(2, tmp_path, sync=False)
    assert not any(same[mode, "group"] for mode in ("swap", "blend", "onehot", "revise", "none", "drop"))


@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_the_quickstart_runs_on_two_processes(launcher, tmp_path):
    arguments = ["fit", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    arguments += ["--trainer.strategy", "ddp", "--trainer.enable_progress_bar", "false", "--data.batch_size", "32"]
    arguments += ["--trainer.callbacks+=BiasMonitor"]
    program = ["-m", "lightning_biaskd"]
    if launcher == "torchrun":
        program = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, *program, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("On the test set") == 1
    last = torch.load(tmp_path / "runs/quickstart/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2 * 18  # 1,131 images in batches of 2 x 32
    assert (tmp_path / "runs/quickstart/version_0/bias_monitor.png").is_file()
    (monitor,) = (state for key, state in last["callbacks"].items() if key == "BiasMonitor")
    for metrics in monitor["epochs"].values():
        rates = [metrics[f"bias/wrong_rate/{digit}"] for digit in range(10)]
        assert sum(rates) / 10 == pytest.approx(metrics["bias/wrong_rate"], abs=0.005)  # classes of about one size
