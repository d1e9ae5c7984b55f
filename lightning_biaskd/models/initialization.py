"""Initialisation of weights that several families share."""

from __future__ import annotations

from torch import nn


def he_convolutions(model: nn.Module) -> None:
    """Draws convolutions from a normal of variance 2 / fan-out (He et al., 2015, arXiv 1502.01852), in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_linear(layer: nn.Linear) -> None:
    """Draws a classifier's weights from a normal distribution of deviation 0.01 and sets its bias to 0, in place."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
