"""Tiny networks and data, shared by the tests."""

import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_biaskd import BiasStrategy

CLASSES = 6


def network(classes=CLASSES, width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def by_gamma(mode="blend", normalize="group", balance="complement", **options):
    """A strategy that γ alone weighs, as the paper's, unless told otherwise."""
    return BiasStrategy(mode, normalize, balance, **{"trust": None, "label_trust": None, **options})


class TinyData(LightningDataModule):
    """48 random images; ``labels`` overrides what they are of."""

    num_classes = CLASSES

    def __init__(self, labels=None, batch_size=8):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        image = torch.randn(48, 1, 6, 6, generator=generator)
        target = torch.randint(CLASSES, (48,), generator=generator) if labels is None else labels
        self.loader = DataLoader(TensorDataset(image, target), batch_size=batch_size)

    def train_dataloader(self):
        return self.loader

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(before, module):
    after = module.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


class CompilationCount:
    """A backend of ``torch.compile`` that runs each graph as it is and counts them, from a clean slate."""

    def __init__(self):
        torch._dynamo.reset()
        self.graphs = 0

    def __call__(self, graph, _inputs):
        self.graphs += 1
        return graph
