"""Networks, one file per family, and their weights."""

from lightning_biaskd.models.detector import faster_rcnn
from lightning_biaskd.models.hugging_face import from_pretrained
from lightning_biaskd.models.mobilenet_v1 import MobileNetV1
from lightning_biaskd.models.mobilenet_v2 import MobileNetV2, mobilenet_v2_half
from lightning_biaskd.models.resnet import (
    CIFARResNet,
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from lightning_biaskd.models.resnet_four_stage import FourStageResNet, resnet18, resnet34, resnet50
from lightning_biaskd.models.shufflenet_v1 import ShuffleNetV1, shufflenet_v1
from lightning_biaskd.models.shufflenet_v2 import ShuffleNetV2, shufflenet_v2
from lightning_biaskd.models.stem import cifar_stem, torchvision_cifar_resnet
from lightning_biaskd.models.unet import UNet
from lightning_biaskd.models.vgg import (
    VGG,
    vgg8,
    vgg11,
    vgg13,
    vgg16,
    vgg19,
)
from lightning_biaskd.models.wide_resnet import (
    WideResNet,
    wrn_16_1,
    wrn_16_2,
    wrn_40_1,
    wrn_40_2,
)
from lightning_biaskd.networks.weights import load_weights

__all__ = [
    "VGG",
    "CIFARResNet",
    "FourStageResNet",
    "MobileNetV1",
    "MobileNetV2",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "UNet",
    "WideResNet",
    "cifar_stem",
    "faster_rcnn",
    "from_pretrained",
    "load_weights",
    "mobilenet_v2_half",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet110",
    "shufflenet_v1",
    "shufflenet_v2",
    "torchvision_cifar_resnet",
    "vgg8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]
