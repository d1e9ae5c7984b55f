"""Distillation with the teacher's classifier."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_biaskd.distiller import Needs
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, Layer, check_average, feature_of, same_size
from lightning_biaskd.features.connectors import BatchNorm2d, Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.networks.tap import FeatureTap, untapped

_PROJECTED = "SimKD: projected"


def simkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of each sample's two maps.

    Args:
        student: (B, D, H, W).
        teacher: (B, D, H', W'); the larger map is averaged to the size of the smaller.

    Returns:
        (B,)

    Example:
        >>> simkd_loss(torch.zeros(1, 1, 1, 1), torch.tensor([2.0, 4.0]).view(1, 1, 2, 1))
        tensor([9.])
    """
    student, teacher = same_size(at_least_float32(student), at_least_float32(teacher))
    return (student - teacher).square().flatten(1).mean(1)


class SimKD(FeatureDistiller):
    r"""Chen, Mei, Zhang, Wang, Feng, Chen, *Knowledge Distillation with the Reused Teacher Classifier*.

    CVPR 2022, arXiv 2203.14001. The student keeps its encoder and uses the teacher's classifier. Only the last map is
    distilled, through a learned projector p between the two:

    .. math::
        \ell_i = \mathrm{mean}\big(p(F^S_i) - F^T_i\big)^2, \qquad
        z^S_i = \mathrm{classifier}^T\big(\mathrm{average}(p(F^S_i))\big)

    p is a bottleneck of three convolutions (1x1, 3x3, 1x1), each with BatchNorm and ReLU. A larger map is averaged to
    the size of the smaller.

    :math:`z^S` are the student's logits everywhere: in validation, test and prediction, in cross-entropy, and for other
    methods in the same sum. Its own classifier is not used and is frozen. ``module.deployed()`` of the
    :class:`~lightning_biaskd.DistillationModule` is the network to deploy: a copy of the student with the projector
    after the last map, and the teacher's classifier. ``module.student``, and the weights that
    :func:`~lightning_biaskd.load_weights` takes from a checkpoint, contain neither of the two. The checkpoint contains
    both.

    The defaults are those of the authors' code (DefangChen/SimKD): factor 2, the loss's weight 1, and cross-entropy at
    0. The projector ends in ReLU, so it cannot match a teacher whose last map has many negative values.

    In training, BatchNorm takes its statistics from all samples of the process, unless the Trainer has
    ``sync_batchnorm=True``. Only the student's features pass through it.

    Args:
        layer: the student's last feature map; the classifier must read its average.
        teacher_layer: the teacher's last feature map; ``None`` for the same name.
        factor: how much narrower than the teacher's map the projector is inside.

    Raises:
        UserError: a factor below 1; when called before ``build``; a feature that is not a map, or whose average the
            classifier doesn't read; a classifier that is not a module.
    """

    needs = Needs(embedding=True)

    def __init__(self, layer: Layer = -1, teacher_layer: Layer | None = None, factor: int = 2) -> None:
        super().__init__(layer, teacher_layer)
        if factor < 1:
            raise UserError(f"factor must be at least 1, got {factor}")
        self.factor = factor
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the projector, copies the teacher's classifier and freezes the student's."""
        ((s, t),) = self.pairs(student, teacher)
        for outputs, feature, (layer,) in ((student, s, self.needs.layers), (teacher, t, self.needs.teacher_layers)):
            if feature.ndim != 4:
                raise UserError(f"SimKD needs a map (B, D, H, W), but layer {layer!r} gives {tuple(feature.shape)}")
            check_average("SimKD", outputs, layer)
        _module(student).requires_grad_(False)
        classifier = untapped(_module(teacher)).requires_grad_(False).train()
        self.connectors = to_device_of([_projector(s, t, self.factor), Connector(classifier)], s)

    def outputs_of(self, student: Outputs) -> Outputs:
        """The student's outputs with the logits that the teacher's classifier gives for the projected map."""
        projected = self._projected(student)
        logits = require_built(self.connectors)[1](projected.mean((2, 3)))
        features = {**student.features, _PROJECTED: projected}
        return Outputs(logits, features, student.embedding, student.head, student.index)

    def deployed(self, student: FeatureTap) -> nn.Module:
        """A copy of the student with the projector after its last map and the teacher's classifier."""
        projector, classifier = copy.deepcopy(require_built(self.connectors))
        return student.grafted(self.needs.layers[0], projector, classifier)

    def deployed_layers(self) -> Iterable[nn.Module]:
        """The projector and the teacher's classifier."""
        return self.connectors

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        ((_, t),) = self.pairs(student, teacher)
        projected = student.features.get(_PROJECTED)
        return simkd_loss(self._projected(student) if projected is None else projected, t)

    def _projected(self, student: Outputs) -> Tensor:
        projected: Tensor = require_built(self.connectors)[0](feature_of(student, self.needs.layers[0], "student"))
        return projected

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, factor={self.factor}"


def _projector(student: Tensor, teacher: Tensor, factor: int) -> Connector:
    channels, middle = teacher.shape[1], max(teacher.shape[1] // factor, 1)
    size = torch.Size(map(min, student.shape[2:], teacher.shape[2:]))
    layers: list[nn.Module] = [] if size == student.shape[2:] else [nn.AdaptiveAvgPool2d(tuple(size))]
    for into, out, kernel in ((student.shape[1], middle, 1), (middle, middle, 3), (middle, channels, 1)):
        layers += [nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False), BatchNorm2d(out), nn.ReLU()]
    return Connector(*layers)


def _module(outputs: Outputs) -> nn.Module:
    if not isinstance(outputs.head, nn.Module):
        raise UserError(
            "SimKD exchanges classifiers, so both must be modules: let the network's last layer give the logits, and "
            "run FeatureTap(model, layers, embedding=True)"
        )
    return outputs.head
