"""N-to-one representation matching."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_biaskd.distiller import Needs
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, Layer, as_map, check_average, feature_of, same_size
from lightning_biaskd.features.connectors import BatchNorm2d, Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.networks.tap import FeatureTap

_EXPANDED = "NORM: expanded"
_SHARES = (0.1, 0.5, 1.0, 0.5, 0.1)


def norm_loss(expanded: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of the teacher's map from each of N student maps, summed; see :class:`NORM`.

    Args:
        expanded: (B, N · D, H, W), the N maps one after the other.
        teacher: (B, D, H', W'); the larger map is averaged to the size of the smaller.

    Returns:
        (B,)

    Example:
        Two maps of one channel:

        >>> norm_loss(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), torch.zeros(1, 1, 1, 1))
        tensor([10.])
    """
    expanded, teacher = same_size(at_least_float32(expanded), at_least_float32(teacher))
    maps = expanded.reshape(len(expanded), -1, *teacher.shape[1:])
    return (maps - teacher.unsqueeze(1)).square().mean((2, 3, 4)).sum(1)


class NORM(FeatureDistiller):
    r"""Liu, Li, Li, Yao, *NORM: Knowledge Distillation via N-to-One Representation Matching*, ICLR 2023.

    arXiv 2305.13803. Between its last map F and its classifier, the student gets two linear layers: A expands the map
    to N times the teacher's channels, and C contracts it to its own. Each of the N parts
    :math:`(A F)^{(n)}` is to be the teacher's map:

    .. math::
        \ell_i = s_e \sum_{n=1}^N \mathrm{mean}\big((A F^S_i)^{(n)} - F^T_i\big)^2, \qquad
        z^S_i = \mathrm{classifier}\big(\mathrm{average}(F^S_i + C A F^S_i)\big)

    A and C are 1x1 convolutions with BatchNorm. :math:`z^S` are the student's logits everywhere, and C is learned from
    the losses on them. After training the layers are merged into the classifier, as the average, A and C are linear:
    ``module.deployed()`` is the student's architecture with another classifier. ``module.student``, and the weights
    that :func:`~lightning_biaskd.load_weights` takes from a checkpoint, are without them.

    The weight :math:`s_e` depends on the epoch: 0.1, 0.5, 1, 0.5 and 0.1, in the five periods that ``boundaries``
    separate. Before the first call of ``set_epoch`` it is 1.

    The defaults are those of the authors' code (OSVAI/NORM) for CIFAR-100, whose 240 epochs have these boundaries: 8
    parts, and the loss at weight 1 with cross-entropy at 0.1, which they also try at 0.0625 to 0.5. Their code also
    standardises the logits of both networks; here they stay as they are. It max-pools a larger teacher's map.

    In training, BatchNorm takes its statistics from all samples of the process, unless the Trainer has
    ``sync_batchnorm=True``. Only the student's features pass through it.

    Args:
        layer: the student's last feature map; the classifier must read its average.
        teacher_layer: the teacher's last feature map or tokens; ``None`` for the same name.
        parts: N.
        boundaries: the first epochs, counted from 0, of the second to the fifth period.

    Raises:
        UserError: fewer than one part, or not four rising boundaries; when called before ``build``; a student's
            feature that is not a map, or whose average the classifier doesn't read; a classifier that is not linear.
    """

    needs = Needs(embedding=True)
    share: Tensor

    def __init__(
        self,
        layer: Layer = -1,
        teacher_layer: Layer | None = None,
        parts: int = 8,
        boundaries: Sequence[int] = (9, 19, 179, 209),
    ) -> None:
        super().__init__(layer, teacher_layer)
        if parts < 1:
            raise UserError(f"parts must be at least 1, got {parts}")
        if len(boundaries) != 4 or list(boundaries) != sorted(boundaries):
            raise UserError(f"boundaries must be four rising epochs, got {boundaries}")
        self.parts = parts
        self.boundaries = tuple(boundaries)
        self.connectors = nn.ModuleList()
        self.register_buffer("share", torch.tensor(1.0), persistent=False)

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the two linear layers."""
        ((s, t),) = self.pairs(student, teacher)
        if s.ndim != 4:
            (layer,) = self.needs.layers
            raise UserError(f"NORM needs a map (B, D, H, W), but layer {layer!r} gives {tuple(s.shape)}")
        if not isinstance(student.head, nn.Linear):
            raise UserError(
                f"NORM merges layers into a linear classifier, and got {type(student.head).__name__}: take a student "
                "that ends in nn.Linear"
            )
        check_average("NORM", student, *self.needs.layers)
        own, inside = s.shape[1], self.parts * as_map(t).shape[1]
        self.connectors = to_device_of([_linear(own, inside), _linear(inside, own)], s)

    def outputs_of(self, student: Outputs) -> Outputs:
        """The student's outputs with the embedding and logits that follow from the two linear layers."""
        feature = feature_of(student, self.needs.layers[0], "student")
        expanded = require_built(self.connectors)[0](feature)
        embedding = (feature + self.connectors[1](expanded)).mean((2, 3))
        if not isinstance(student.head, nn.Linear):
            raise UserError("NORM needs the classifier: run FeatureTap(model, layers, embedding=True)")
        logits = student.head(embedding.to(student.head.weight.dtype))
        return Outputs(logits, {**student.features, _EXPANDED: expanded}, embedding, student.head, student.index)

    def deployed(self, student: FeatureTap) -> nn.Module:
        """A copy of the student with the two linear layers merged into its classifier."""
        return student.with_classifier(self._merged)

    def deployed_layers(self) -> Iterable[nn.Module]:
        """The two linear layers."""
        return self.connectors

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        ((s, t),) = self.pairs(student, teacher)
        expand = require_built(self.connectors)[0]
        expanded = student.features.get(_EXPANDED)
        return self.share * norm_loss(expand(s) if expanded is None else expanded, t)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.share.fill_(_SHARES[sum(epoch >= boundary for boundary in self.boundaries)])

    def _merged(self, head: nn.Module) -> nn.Module:
        """The classifier of an average before the two layers, from the one of an average behind them."""
        merged = copy.deepcopy(head)
        if not isinstance(merged, nn.Linear):
            raise UserError(f"NORM merges layers into a linear classifier, and got {type(head).__name__}")
        weight, layers = merged.weight.data.double(), copy.deepcopy(self.connectors).eval().double()
        size = merged.in_features
        # an affine map is known from where it sends the origin and the unit vectors
        probes = torch.cat([weight.new_zeros(1, size), torch.eye(size, dtype=weight.dtype, device=weight.device)])
        with torch.no_grad():
            sent = probes + layers[1](layers[0](probes[:, :, None, None])).flatten(1)
            shift = weight @ sent[0]
            bias = shift if merged.bias is None else shift + merged.bias
            merged.weight.data = (weight @ (sent[1:] - sent[0]).T).to(merged.weight.dtype)
            merged.bias = nn.Parameter(bias.to(merged.weight.dtype))
        return merged

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, parts={self.parts}, boundaries={self.boundaries}"


def _linear(into: int, out: int) -> Connector:
    return Connector(nn.Conv2d(into, out, 1, bias=False), BatchNorm2d(out))
