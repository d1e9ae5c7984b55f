"""A stem for small images in networks designed for ImageNet."""

from __future__ import annotations

from torch import nn
from torchvision.models import ResNet, get_model

from lightning_biaskd.errors import UserError


def cifar_stem(model: ResNet, in_channels: int = 3) -> ResNet:
    """Replaces the stem of torchvision's ResNet by a 3x3 convolution with stride 1 and removes its max-pool, in place.

    The new stem keeps the resolution of small images. Its weights are random.

    Args:
        model: any of torchvision's ResNets, ResNeXts or wide ResNets.
        in_channels: of the image.

    Returns:
        The same network.

    Example:
        >>> from torchvision.models import resnet18
        >>> cifar_stem(resnet18(num_classes=10), in_channels=1).conv1
        Conv2d(1, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    model.conv1 = nn.Conv2d(in_channels, model.conv1.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def torchvision_cifar_resnet(
    name: str, num_classes: int = 100, in_channels: int = 3, weights: str | None = None
) -> ResNet:
    """One of torchvision's ResNets with :func:`cifar_stem` and a new classifier, by name, for YAML files.

    Args:
        name: torchvision's name: ``resnet18``, ``resnext50_32x4d``, …
        num_classes: C, the number of classes.
        in_channels: of the image.
        weights: torchvision's name of the initial weights, such as ``IMAGENET1K_V1``; stem and classifier are always
            new.

    Raises:
        UserError: torchvision has no such network or weights, or the network isn't a ResNet.
    """
    try:
        model = get_model(name, weights=weights)
    except (ValueError, KeyError) as error:
        raise UserError(f"torchvision has no {name!r} with weights {weights!r}: {error}") from None
    if not isinstance(model, ResNet):
        raise UserError(f"{name!r} is a {type(model).__name__}, not one of torchvision's ResNets")
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    return cifar_stem(model, in_channels)
