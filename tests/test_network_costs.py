"""The arithmetic and the memory traffic of docs/scaling.md, by hand."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from network_costs import costs, parameters


class Small(torch.nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.second = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
        self.last = torch.nn.Linear(8, 10)

    def forward(self, image):
        return self.last(self.second(self.first(image)).mean((2, 3)))


@pytest.mark.parametrize("groups", [1, 8])
def test_operations_are_counted_by_hand(groups):
    forward = 4 * 2 * (16 * 16 * 8 * 3 * 9 + 16 * 16 * 8 * (8 // groups) * 9 + 8 * 10)
    found = costs(lambda: Small(groups), 4, train=False, size=32)
    assert (found.flops, found.saved) == (forward, 0)
    trained = costs(lambda: Small(groups), 4, train=True, size=32)
    # of each layer, the gradients of weights and input; the image has none
    assert trained.flops == 3 * forward - 4 * 2 * 16 * 16 * 8 * 3 * 9
    image, maps = 4 * 3 * 32 * 32 * 2, 4 * 8 * 16 * 16 * 2
    assert image + maps < trained.saved < image + maps + 1000  # what each convolution read, and a few numbers
    weights = 2 * (8 * 27 + 8 * (8 // groups) * 9)
    assert found.operations[0] == (4 * 2 * 16 * 16 * 8 * 27, image + maps + 2 * 8 * 27)
    assert found.traffic >= image + 3 * maps + weights
    assert found.seconds(1e12, 1e9, 1.0) == len(found.operations)  # nothing is shorter than a launch
    assert parameters(lambda: Small(groups)) == weights / 2 + 90
