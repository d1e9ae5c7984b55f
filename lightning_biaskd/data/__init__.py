"""LightningDataModules, one file per data set."""

from lightning_biaskd.data.base import ImageDataModule
from lightning_biaskd.data.batch import Batch
from lightning_biaskd.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from lightning_biaskd.data.coco import COCODetectionDataModule
from lightning_biaskd.data.detection import BoxedImage, BoxedObject, DetectionBatch, DetectionDataModule
from lightning_biaskd.data.digits import DigitsDataModule
from lightning_biaskd.data.fashion_mnist import FashionMNISTDataModule
from lightning_biaskd.data.image_folder import ImageFolderDataModule
from lightning_biaskd.data.imagenet import ImageNetDataModule
from lightning_biaskd.data.in_memory import InMemoryDataModule
from lightning_biaskd.data.segmentation import SegmentationFolderDataModule
from lightning_biaskd.data.voc_detection import VOCDetectionDataModule

__all__ = [
    "Batch",
    "BoxedImage",
    "BoxedObject",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "COCODetectionDataModule",
    "DetectionBatch",
    "DetectionDataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "InMemoryDataModule",
    "SegmentationFolderDataModule",
    "VOCDetectionDataModule",
]
