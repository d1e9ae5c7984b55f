"""Two real processes, of which one may have no data of its own: nothing hangs, and every image counts once."""

import datetime
import os
import socket

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from processes import spawn
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from lightning_biaskd import DistillationModule
from lightning_biaskd.callbacks import BiasMonitor
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.metrics import Agreement, CalibrationError, topk_accuracies
from lightning_biaskd.metrics.meters import Meters

IMAGES = TensorDataset(torch.randn(13, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(13) % 5)
COUNTS = ("both", "neither", "student_only", "teacher_only")


class Shards(IterableDataset):
    """A stream of which the second process has no part."""

    def __iter__(self):
        yield from [] if os.environ["LOCAL_RANK"] == "1" else [IMAGES[n] for n in range(8)]


class OwnSampler(BatchSampler):
    """A batch sampler of the user's."""


def plain():
    return DataLoader(IMAGES, batch_size=4)


LOADERS = {
    "alone": plain,
    "list": lambda: [plain()],
    "tuple": lambda: (plain(),),
    "dict": lambda: {"a": plain()},
    "nested": lambda: {"a": [plain()]},
    "combined": lambda: CombinedLoader([plain()], "sequential"),
    "bare and combined": lambda: CombinedLoader(plain(), "max_size"),
    "batch sampler": lambda: DataLoader(IMAGES, batch_sampler=OwnSampler(SequentialSampler(IMAGES), 4, False)),
    "shuffled": lambda: DataLoader(IMAGES, batch_size=4, shuffle=True),
    "one image": lambda: DataLoader(TensorDataset(*IMAGES[:1]), batch_size=4),
    "no shard": lambda: DataLoader(Shards(), batch_size=4),
}


def trainer(folder, **kwargs):
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    strategy = DDPStrategy(timeout=datetime.timedelta(seconds=60))
    place = {"accelerator": "cpu", "devices": 2, "strategy": strategy, "plugins": [LightningEnvironment()]}
    return Trainer(**place, **off, default_root_dir=folder, **kwargs)


def module(features, classes):
    torch.manual_seed(1)
    return DistillationModule(*(nn.Sequential(nn.Flatten(), nn.Linear(features, classes)) for _ in range(2)))


def run_rank(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    found = {}
    for name, loaders in LOADERS.items():
        for stage, evaluate in (("val", "validate"), ("test", "test")):
            (values,) = getattr(trainer(folder), evaluate)(module(12, 5), loaders(), verbose=False)
            found[f"{name}, {stage}"] = {key.removeprefix(f"{stage}/"): value for key, value in values.items()}
    monitor = BiasMonitor()
    run = trainer(folder, max_epochs=2, limit_train_batches=2, callbacks=[monitor])
    run.fit(module(64, 10), DigitsDataModule(val_split=1))
    found["fit"] = {key: value.item() for key, value in run.callback_metrics.items()}
    found["meters"] = metered(rank)
    torch.save(found, f"{folder}/{rank}.pt")


def metered(rank):
    """Meters that the first process alone, the second alone, or both updated; the same on both."""
    meters, logits = Meters(), torch.eye(5)
    if rank == 0:
        meters.update("val/zero", lambda: topk_accuracies(5), logits[:2], torch.tensor([0, 2]))
        meters.update("val/0.5", lambda: CalibrationError(5), 100 * logits[:2], torch.tensor([0, 2]))
    else:
        meters.update("val/one", Agreement, logits, logits)
    meters.update("test/both", Agreement, logits[:1], logits[rank : rank + 1])
    first = meters.compute("val/"), meters.compute("test/")
    meters.reset("val/")
    return *first, meters.compute()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = spawn(run_rank, (str(folder), port), nprocs=2, join=False)
    for process in context.processes:
        process.join(150)
    hanging = [process for process in context.processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "the processes wait for each other"
    context.join()
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("name", LOADERS)
def test_every_image_counts_once_whatever_holds_the_loader(ranks, name, stage):
    size = {"one image": 1, "no shard": 8}.get(name, 13)
    values = ranks[0][f"{name}, {stage}"]
    assert sum(values[count] for count in COUNTS) == size
    image, target = IMAGES[:size]
    right = (module(12, 5)(image).argmax(1) == target).float().mean().item()
    assert values["acc1"] == pytest.approx(right, abs=1e-6)
    assert ranks[1][f"{name}, {stage}"] == values


def test_a_fit_goes_on_where_a_rank_has_no_validation_image(ranks):
    first, second = (found["fit"] for found in ranks)
    assert first == second
    assert sum(first[f"val/{count}"] for count in COUNTS) == 1
    assert "val/calibration_error" in first


def test_meters_that_one_process_lacks_are_built(ranks):
    one, other = (found["meters"] for found in ranks)
    torch.testing.assert_close(one, other)
    validation, test, rest = one
    assert validation["val/zero"] == {"acc1": 0.5, "acc5": 1.0}
    assert validation["val/0.5"] == pytest.approx(0.5)
    assert validation["val/one"] == 1
    assert test == rest == {"test/both": 0.5}
