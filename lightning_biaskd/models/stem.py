"""A stem for small images, for networks that were made for ImageNet."""

from __future__ import annotations

from torch import nn
from torchvision.models import ResNet, get_model

from lightning_biaskd.errors import UserError


def cifar_stem(model: ResNet, in_channels: int = 3) -> ResNet:
    """Gives torchvision's ResNet a 3x3 convolution of stride 1 for its stem and takes its max-pool away, in place.

    Small images keep their resolution through it. The new convolution starts from random weights.

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
    """One of torchvision's ResNets with :func:`cifar_stem` and a fresh classifier, by name, for YAML files.

    Args:
        name: as torchvision spells it: ``resnet18``, ``resnext50_32x4d``, …
        num_classes: C, the number of classes.
        in_channels: of the image.
        weights: torchvision's name of the weights to start from, such as ``IMAGENET1K_V1``; stem and classifier are
            new either way.

    Raises:
        UserError: torchvision has no such network or weights, or it isn't a ResNet.
    """
    try:
        model = get_model(name, weights=weights)
    except (ValueError, KeyError) as error:
        raise UserError(f"torchvision has no {name!r} with weights {weights!r}: {error}") from None
    if not isinstance(model, ResNet):
        raise UserError(f"{name!r} is a {type(model).__name__}, not one of torchvision's ResNets")
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    return cifar_stem(model, in_channels)
