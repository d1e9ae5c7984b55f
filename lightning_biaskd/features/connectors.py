"""Learned layers that bring a student's feature to the teacher's shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.errors import UserError


class Connector(nn.Sequential):
    """Layers whose output has the precision of their input, whatever the precision of their weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layers one after the other."""
        output = x.to(next(self.parameters()).dtype)
        for layer in self:
            output = layer(output)
        return output.to(x.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that uses the running statistics if a channel has a single value, as in a 1x1 map of one sample."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, D, H, W)."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def regressor(student: Tensor, teacher: Tensor) -> Connector:
    """Convolution, BatchNorm and ReLU, from a student's map to the shape of a teacher's.

    The kernel sizes are those of RepDistiller and mdistiller: 3 with stride 2 if the student's map is twice as high, 4
    in a transposed convolution with stride 2 if it is half as high, and 1 if both are equal. For other sizes these
    codes use a kernel as large as the difference, or none. Here it is 1, and
    :func:`~lightning_biaskd.features.base.same_size` averages the larger map to the size of the smaller.

    In training, BatchNorm takes its statistics from all samples of the process, unless the Trainer has
    ``sync_batchnorm=True``.

    Args:
        student: the student's map (B, D, H, W); only its shape is used.
        teacher: the teacher's map (B, D, H, W); only its shape is used.

    Example:
        >>> import torch
        >>> small, large = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 8, 8)
        >>> regressor(small, large)(small).shape, regressor(large, small)(large).shape
        (torch.Size([2, 5, 8, 8]), torch.Size([2, 3, 4, 4]))
    """
    channels = student.shape[1], teacher.shape[1]
    height, other = student.shape[2], teacher.shape[2]
    convolution: nn.Module
    if height == 2 * other:
        convolution = nn.Conv2d(*channels, 3, stride=2, padding=1)
    elif 2 * height == other:
        convolution = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
    else:
        convolution = nn.Conv2d(*channels, 1)
    return Connector(convolution, BatchNorm2d(channels[1]), nn.ReLU())


def to_device_of(connectors: Sequence[nn.Module], like: Tensor) -> nn.ModuleList:
    """The connectors as a list, on the device and in the precision of a feature."""
    return nn.ModuleList(connectors).to(like.device, like.dtype)


def require_built(connectors: nn.ModuleList) -> nn.ModuleList:
    """The connectors that a method's ``build`` has created.

    Raises:
        UserError: the method is not built yet.
    """
    if not len(connectors):
        raise UserError(
            "the method is not built yet: call module.rehearse(images), or distiller.build(student, "
            "teacher) with the outputs for a few images, before the optimizer is created"
        )
    return connectors
