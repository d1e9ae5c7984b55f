import gc
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from file_server import server  # noqa: F401  (a fixture)
from lightning.pytorch import Trainer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and tiny networks lose by more

MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4e9:  # every checkpoint is forced to the disk, which takes long
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="let the tests see a GPU, which some of them need")


def pytest_configure(config):
    if not config.getoption("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_xdist_auto_num_workers():
    """Two more than there are cores: many tests wait for processes that they start."""
    return (os.cpu_count() or 1) + 2


def pytest_collection_finish():
    """All that has been imported stays, so the collector needn't walk it again and again."""
    gc.freeze()
    gc.set_threshold(50_000)


def pytest_sessionfinish():
    gc.unfreeze()  # libraries count at the end what is left


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed notes a stack for each kind of accelerator
    torch.set_num_threads(1)


@pytest.fixture
def trainer(tmp_path):
    """Builds a quiet trainer on the CPU; keyword arguments as of Trainer."""

    def build(**kwargs):
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "max_epochs": 1,
        }
        return Trainer(**{**quiet, **kwargs})

    return build
