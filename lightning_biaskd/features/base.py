"""Shared parts of the methods that read features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.distiller import Distiller
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

Layer = int | str
"""A layer's name, or its stage counted from the end: -1 is the last."""


def layer_names(layers: Layer | Sequence[Layer], preactivation: bool = False) -> tuple[str, ...]:
    """Layers as :class:`~lightning_biaskd.FeatureTap` names them.

    Args:
        layers: one layer or several.
        preactivation: take each before the activation at its end.

    Example:
        >>> layer_names([-2, "layer3"]), layer_names(-1, preactivation=True)
        (('-2', 'layer3'), ('-1:pre',))
    """
    several = [layers] if isinstance(layers, int | str) else layers
    return tuple(f"{layer}:pre" if preactivation else str(layer) for layer in several)


class FeatureDistiller(Distiller):
    """Base of the methods that compare features. A feature cannot be corrected, so their wrong samples are dropped.

    Args:
        layers: the student's layers, by name or by stage.
        teacher_layers: the teacher's layers, in the same order; ``None`` for the same as the student's.
        preactivation: compare before the activation at a layer's end.
        warmup_epochs: the weight grows linearly from ``1 / warmup_epochs`` in the first epoch to 1.

    Raises:
        UserError: the numbers of student layers and teacher layers differ.
    """

    reads = "features"
    least_classes = 1

    def __init__(
        self,
        layers: Layer | Sequence[Layer] = (),
        teacher_layers: Layer | Sequence[Layer] | None = None,
        preactivation: bool = False,
        warmup_epochs: int = 0,
    ) -> None:
        super().__init__(warmup_epochs=warmup_epochs)
        own = layer_names(layers, preactivation)
        others = own if teacher_layers is None else layer_names(teacher_layers, preactivation)
        if len(own) != len(others):
            raise UserError(
                f"{len(own)} layers of the student need as many of the teacher, not {len(others)}: name both"
            )
        self.needs = replace(self.needs, layers=own, teacher_layers=others)

    def pairs(self, student: Outputs, teacher: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
        """The features of student and teacher, layer by layer, in float32 at least.

        Raises:
            UserError: the outputs do not contain them.
        """
        for own, others in zip(self.needs.layers, self.needs.teacher_layers, strict=True):
            yield feature_of(student, own, "student"), feature_of(teacher, others, "teacher")

    def extra_repr(self) -> str:
        layers, others = self.needs.layers, self.needs.teacher_layers
        teacher = f", teacher_layers={others}" if others != layers else ""
        warmup = f", warmup_epochs={self.warmup_epochs}" if self.warmup_epochs else ""
        return f"layers={layers}{teacher}{warmup}"


def feature_of(outputs: Outputs, layer: str, whose: str) -> Tensor:
    """The feature of one layer, in float32 at least.

    Args:
        outputs: the outputs of one network.
        layer: the layer's name.
        whose: ``"student"`` or ``"teacher"``, for the error message.

    Raises:
        UserError: the outputs do not contain it.
    """
    if layer not in outputs.features:
        raise UserError(
            f"the {whose}'s outputs contain no feature {layer!r}: run FeatureTap(model, "
            "method.needs.layers), or FrozenTeacher(model, layers=method.needs.teacher_layers)"
        )
    return at_least_float32(outputs.features[layer])


def embeddings(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """The embeddings of both networks, (B, D) each, in float32 at least.

    Raises:
        UserError: the outputs do not contain them.
    """
    if student.embedding is None or teacher.embedding is None:
        raise UserError(
            "the outputs contain no embedding: run FeatureTap(model, embedding=True) and "
            "FrozenTeacher(model, embedding=True)"
        )
    return at_least_float32(student.embedding.flatten(1)), at_least_float32(teacher.embedding.flatten(1))


def check_average(method: str, outputs: Outputs, layer: str) -> None:
    """Checks that the classifier reads the average of a map (B, D, H, W), if the outputs contain the embedding.

    Raises:
        UserError: the classifier does not read the average.
    """
    if outputs.embedding is None:
        return
    read, mean = outputs.embedding.flatten(1), as_map(outputs.features[layer]).mean((2, 3))
    if read.shape != mean.shape or not torch.allclose(read, mean, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"{method}: the classifier does not read the average of layer {layer!r}: name the layer whose average it "
            "reads"
        )


def check_positions(method: str, *maps: Tensor) -> None:
    """Refuses maps (B, D, H, W) that all have one position, in a method that compares the positions of a map.

    Raises:
        UserError: every map has one position.
    """
    if all(x.shape[2:].numel() == 1 for x in maps):
        raise UserError(f"{method} teaches nothing with maps of one position: name layers with larger maps")


def as_map(feature: Tensor) -> Tensor:
    """A feature as a map (B, D, H, W). Tokens (B, N, D) are arranged in a square, without class tokens before them.

    Raises:
        UserError: the feature has other dimensions, or its tokens do not fill a square.

    Example:
        >>> as_map(torch.zeros(2, 50, 192)).shape
        torch.Size([2, 192, 7, 7])
    """
    if feature.ndim == 4:
        return feature
    if feature.ndim == 3:
        side = math.isqrt(feature.shape[1])
        if feature.shape[1] - side**2 <= 8:
            return feature[:, feature.shape[1] - side**2 :].transpose(1, 2).reshape(*feature.shape[::2], side, side)
    raise UserError(
        f"a feature of shape {tuple(feature.shape)} is neither a map (B, D, H, W) nor square tokens (B, N, D): name "
        "another layer"
    )


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two features as maps (B, D, H, W), see :func:`as_map`, averaged to the smaller of their sizes.

    Example:
        >>> [x.shape[2:] for x in same_size(torch.zeros(1, 3, 8, 8), torch.zeros(1, 5, 4, 4))]
        [torch.Size([4, 4]), torch.Size([4, 4])]
    """
    student, teacher = as_map(student), as_map(teacher)
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pooled(student, size), _pooled(teacher, size)


def _pooled(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Vectors along ``dim`` scaled to length 1. A zero vector stays zero and gets no gradient.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    length: Tensor = x.norm(dim=dim, keepdim=True)
    return x / length.where(length > torch.finfo(x.dtype).tiny ** 0.5, torch.inf)


def full_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product in the higher precision of its factors, also under autocast."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype)


def pairs_kept(x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """The pairs in which both samples are kept.

    Args:
        x: (B, …), for the batch size and the device.
        keep: (B,) bool, ``None`` for all.

    Returns:
        (B, B) bool, and the number of kept samples.
    """
    kept = torch.ones(len(x), dtype=torch.bool, device=x.device) if keep is None else keep
    return kept.unsqueeze(0) & kept.unsqueeze(1), kept.sum()
