"""No step copies between CPU and GPU, which would wait. PyTorch's pretended GPU tensors show it without a GPU."""

import copy

import pytest
import torch
from properties import batch
from settings import SETTINGS
from tiny import by_gamma
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_biaskd import BiasStrategy
from lightning_biaskd.data import Batch, CIFAR100DataModule
from lightning_biaskd.data.augment import per_channel
from lightning_biaskd.data.segmentation import SegmentationFolderDataModule
from lightning_biaskd.randomness.bits import random_bits


class NoCopies(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "_to_copy" in str(func) or "copy_" in str(func):
            places = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)}
            assert len(places) == 1, f"{func} copies between {' and '.join(sorted(places))}"
        return result


@pytest.fixture
def pretended():
    per_channel.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    per_channel.cache_clear()


def on_gpu(value):
    """A pretended tensor on a GPU; or a module or outputs that hold some."""
    if not isinstance(value, nn.Module):
        move = {torch.Tensor: lambda x: torch.empty_like(x, device="cuda"), nn.Module: on_gpu}
        for kind, moved in move.items():
            value = tree_map_only(kind, moved, value)
        return value
    for part in value.modules():
        for name, tensor in part._parameters.items():
            part._parameters[name] = None if tensor is None else nn.Parameter(on_gpu(tensor), tensor.requires_grad)
        part._buffers = on_gpu(part._buffers)
    return value


@pytest.mark.parametrize(
    "copied", [lambda: torch.tensor(1.0, device="cuda"), lambda: torch.ones(2, device="cuda").cpu()]
)
def test_the_test_can_fail(copied, pretended):
    with NoCopies(), pytest.raises(AssertionError, match="copies between"):
        copied()


@pytest.mark.parametrize("options", [{}, {"views": 4}, {"cutout": 8, "color_jitter": 0.4}])
def test_images(options, pretended):
    data = CIFAR100DataModule(**options)
    index = torch.arange(4, device="cuda")
    drawn = Batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="cuda"), torch.zeros_like(index), index)
    for step in range(2):
        mode = NoCopies() if step else torch.no_grad()  # constants are copied once
        with mode:
            image = data.normalized(data.training_views(drawn, random_bits(1 << 40, 3, index)).image)
    assert image.device.type == "cuda"


def test_label_maps(pretended):
    data = SegmentationFolderDataModule(classes=["a", "b"], color_jitter=0.4, scale=(0.5, 2.0))
    index = torch.arange(2, device="cuda")
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8, device="cuda")
    for step in range(2):
        with NoCopies() if step else torch.no_grad():
            data.training_views(Batch(pixels, pixels[:, 0], index), random_bits(0, 3, index))


@pytest.mark.parametrize("bias", [by_gamma("swap"), BiasStrategy()], ids=["paper", "recommended"])
@pytest.mark.parametrize("name", SETTINGS)
def test_losses(name, bias):
    distiller, bias = (copy.deepcopy(part).double() for part in (SETTINGS[name].distiller, bias))
    student, teacher, target = batch()
    outputs = copy.deepcopy([SETTINGS[name].outputs(logits) for logits in (student, teacher)])
    with FakeTensorMode(allow_non_fake_inputs=True):
        distiller, bias, *inputs = map(on_gpu, (distiller, bias, *outputs, target))
        with NoCopies():
            assert bias(distiller, *inputs).total.device.type == "cuda"
