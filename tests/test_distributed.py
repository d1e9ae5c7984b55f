"""N processes train as one: real processes over gloo."""

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from memories import remembering, trained_for_three_steps
from processes import process_group, spawn
from properties import Setting, trained
from settings import SETTINGS
from tiny import by_gamma
from torch.nn.parallel import DistributedDataParallel

from lightning_biaskd.bias.joined_batch import losses_on_joined_batch
from lightning_biaskd.distillers import MLKD, LogitStandardization
from lightning_biaskd.distributed.gather import gather

SIZE, CLASSES = 8, 6
CASES = {**SETTINGS, "two views": Setting(LogitStandardization(MLKD(views=2)))}
MODES = ("plain", "swap", "blend", "onehot", "revise", "none", "drop")
SETTINGS_OF_BIAS = [(mode, "group", True) for mode in MODES] + [("swap", "batch", True), ("drop", "batch", True)]
SETTINGS_OF_BIAS += [("plain", "group", False), ("swap", "group", False), ("swap", "batch", False)]
KEYS = [
    (case, *setting)
    for case, setting in itertools.product(CASES, SETTINGS_OF_BIAS)
    # to methods that are not rectified, neither the mode nor the normalisation makes a difference
    if CASES[case].distiller.reads == "logits" or setting[:2] in (("plain", "group"), ("swap", "group"))
]


def joined_batch():
    """Rank 0 of two has no wrong sample, rank 1 nothing but wrong ones."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(SIZE, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(SIZE, CLASSES, generator=generator, dtype=torch.float64)
    target = torch.cat([teacher[: SIZE // 2].argmax(1), teacher[SIZE // 2 :].argmin(1)])
    return image, teacher, target


def part_of(tensor, rank, world, views):
    """The rows of one rank: its share of each view, one view after the other."""
    by_view = tensor.view(views, world, -1, *tensor.shape[1:])
    return by_view[:, rank].flatten(0, 1)


def gradient(case, mode, normalize, sync, image, teacher, target):
    """Gradients of the student's weight and of what the method learns, and the parts of the loss."""
    distiller, outputs = copy.deepcopy(CASES[case].distiller).double(), CASES[case].outputs
    weight = torch.linspace(-1, 1, CLASSES * 3, dtype=torch.float64).view(CLASSES, 3).requires_grad_()
    answers = outputs(image @ weight.T), outputs(teacher)
    if mode == "plain":
        parts = [w * losses_on_joined_batch(term, *answers, target) for term, w in distiller.terms()]
        total = torch.stack(parts).sum(0).mean()
        values = total[None].detach()
    else:
        bias = by_gamma(mode, normalize, sync=sync).double()
        bias.gamma.fill_(0.3)
        loss = bias(distiller, *answers, target)
        total, values = loss.total, torch.stack(list(loss[:3])).detach()
    gradients = torch.autograd.grad(total, [weight, *trained(distiller)])
    return torch.cat([values, *(g.flatten() for g in gradients)])


def run_rank(rank, world, folder):
    with process_group(rank, world, folder):
        results = {}
        for key in KEYS:
            batch = (part_of(tensor, rank, world, CASES[key[0]].distiller.needs.views) for tensor in joined_batch())
            result = gradient(*key, *batch)
            dist.all_reduce(result)
            results[key] = result / world  # as DDP averages gradients and Lightning logged values
        if rank == 0:
            torch.save(results, f"{folder}/results.pt")
        torch.save(gathered(rank, world), f"{folder}/gathered_{rank}.pt")
        torch.save(remembered(rank, world), f"{folder}/memories_{rank}.pt")


def gathered(rank, world):
    """Gradients of two tensors that each rank gathers and adds: autograd hands both the same tensor."""
    own = [torch.full((2, 3), float(rank + 1), requires_grad=True) for _ in range(2)]
    loss = (sum(gather(x) for x in own) * torch.arange(1.0, 2 * world + 1).unsqueeze(1)).sum()
    return torch.autograd.grad(loss, own)


def remembered(rank, world):
    """What CRD comes to under DDP, and whether a memory that is changed afterwards is left alone."""
    torch.manual_seed(0)
    distiller, *batch = remembering()
    model, total, *rest = trained_for_three_steps(distiller, DistributedDataParallel, rank, world)
    dist.all_reduce(total)
    distiller.student_memory.add_(rank)
    changed = distiller.student_memory.detach().clone()
    model.eval()(*batch)  # DDP sends buffers here
    return total, *rest, torch.equal(changed, distiller.student_memory)


@pytest.fixture(scope="module", params=[2, 4])
def folder(request, tmp_path_factory):
    """What the ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(run_rank, (request.param, str(folder)), nprocs=request.param)
    return folder


@pytest.fixture(scope="module")
def same(folder):
    """Whether several processes have the gradients and losses of one on the joined batch, case by case."""
    return {
        key: torch.allclose(result, gradient(*key, *joined_batch()), rtol=1e-6, atol=1e-12)
        for key, result in torch.load(folder / "results.pt").items()
    }


def test_the_gradient_of_several_processes_is_that_of_one(same):
    different = [key for key, equal in same.items() if key[3] and not equal]
    assert not different


def test_tensors_that_are_gathered_and_added_have_gradients_of_their_own(folder):
    paths = sorted(folder.glob("gathered_*.pt"))
    for rank, path in enumerate(paths):
        rows = len(paths) * torch.tensor([2.0 * rank + 1, 2.0 * rank + 2])  # from the loss of each rank
        for gradient_of_one in torch.load(path):
            torch.testing.assert_close(gradient_of_one, rows.unsqueeze(1).expand(2, 3))


def test_several_processes_remember_as_one_without_sending_memories(folder):
    ranks = [torch.load(path) for path in sorted(folder.glob("memories_*.pt"))]
    torch.manual_seed(0)
    expected = trained_for_three_steps(remembering()[0], lambda model: model)[1:]
    for *result, left_alone in ranks:
        torch.testing.assert_close(tuple(result), expected)
        assert all(torch.equal(a, b) for a, b in zip(result[2], ranks[0][2], strict=True))
        assert left_alone


def test_without_synchronisation_it_is_another_method(same):
    for (case, mode, normalize, sync), equal in same.items():
        distiller = CASES[case].distiller
        reads_logits = distiller.reads == "logits"
        by_group = normalize == "group" and mode != "plain" and reads_logits
        # of methods that aren't rectified, a pair counts where the teacher is right on both: here those of rank 0
        by_pair = distiller.needs.pairwise and distiller.reads == "logits" and mode == "swap"
        if not sync and (by_group or by_pair):
            assert not equal, (case, mode, normalize)


def test_the_quickstart_runs_on_two_processes(tmp_path):
    arguments = ["fit", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    arguments += [
        "--model.teacher_cache",
        "cache",
        "--trainer.strategy",
        "ddp",
        "--trainer.enable_progress_bar",
        "false",
        "--data.batch_size",
        "32",
    ]
    arguments += ["--trainer.callbacks+=BiasMonitor"]
    command = [sys.executable, "-m", "lightning_biaskd", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("On the test images") == 1
    last = torch.load(tmp_path / "runs/quickstart/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2 * 18  # 1,131 images in batches of 2 x 32
    assert (tmp_path / "cache" / "filled.bin").stat().st_size == 1257 * 10 * 4
    assert (tmp_path / "runs/quickstart/version_0/bias_monitor.png").is_file()
    (monitor,) = (state for key, state in last["callbacks"].items() if key == "BiasMonitor")
    for metrics in monitor["epochs"].values():
        rates = [metrics[f"bias/wrong_rate/{digit}"] for digit in range(10)]
        assert sum(rates) / 10 == pytest.approx(metrics["bias/wrong_rate"], abs=0.005)  # classes of about one size
