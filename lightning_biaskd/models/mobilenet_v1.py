"""MobileNetV1 for ImageNet, the second student of the distillation literature."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.models.initialization import he_convolutions, small_linear
from lightning_biaskd.models.layers import conv_bn_relu

# planes and stride of each separable convolution
_LAYERS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


class MobileNetV1(nn.Module):
    """Howard et al., *MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications*, 2017.

    arXiv 1704.04861; 4.23 million parameters for 1000 classes. The resolution is reduced by 32, and images of any size
    from 32x32 on are taken. The state-dict names match the checkpoints of mdistiller and of the code that it follows.

    Args:
        num_classes: C, the number of classes.
        in_channels: of the image.

    Shape:
        (B, in_channels, H, W) to (B, C).

    Example:
        >>> sum(parameter.numel() for parameter in MobileNetV1().parameters())
        4231976
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        planes = 32
        self.model = nn.Sequential(nn.Sequential(*conv_bn_relu(in_channels, planes, 3, 2)))
        for wider, stride in _LAYERS:
            depthwise = conv_bn_relu(planes, planes, 3, stride, groups=planes)
            self.model.append(nn.Sequential(*depthwise, *conv_bn_relu(planes, wider, 1, 1)))
            planes = wider
        self.fc = nn.Linear(planes, num_classes)
        he_convolutions(self)
        small_linear(self.fc)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(self.model(image), 1).flatten(1))
        return logits
