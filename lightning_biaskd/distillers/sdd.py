"""Scale decoupled distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.bias.partition import partition
from lightning_biaskd.distiller import Distiller, Needs, Wrapper
from lightning_biaskd.distillers.dkd import DKD
from lightning_biaskd.errors import UserError, check_weights
from lightning_biaskd.features.base import Layer, check_average, layer_names
from lightning_biaskd.networks.outputs import Outputs


def cell_logits(feature: Tensor, head: Callable[[Tensor], Tensor], scales: Sequence[int]) -> Tensor:
    """Logits of the cells of a feature map, which is averaged over grids of several scales.

    The coarser grids are averages of the finest. If their sides divide each other and the side of the map, this equals
    averaging the map itself.

    Args:
        feature: (B, D, H, W).
        head: the classifier, (N, D) to (N, C).
        scales: cells per side.

    Returns:
        (B, N, C), the cells scale by scale; N is the sum of the squared scales.

    Example:
        >>> feature = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
        >>> cell_logits(feature, lambda x: torch.cat([x, -x], dim=1), scales=(1, 2))[0, :, 0]
        tensor([4., 1., 3., 5., 7.])
    """
    finest = F.adaptive_avg_pool2d(feature, max(scales))
    cells = torch.cat([F.adaptive_avg_pool2d(finest, scale).flatten(2) for scale in scales], dim=2)
    return head(cells.transpose(1, 2).flatten(0, 1)).view(len(feature), cells.shape[2], -1)


class SDD(Wrapper):
    r"""Wei, Luo, Luo, *Scaled Decoupled Distillation*, CVPR 2024, arXiv 2403.13512.

    .. math::
        \ell_i = \frac1N \sum_{n=1}^N w_{in}\, \ell^{\mathrm{inner}}(z^S_{in}, z^T_{in}, y_i), \qquad
        w_{in} = 2\ \text{if cell}\ n\ \text{is complementary, else}\ 1

    Each network's last feature map is averaged over the cells of a 1x1, a 2x2 and a 4x4 grid, and its own classifier
    gives logits :math:`z_{in}` of each of the N = 21 cells; the first is the whole image. A cell is complementary if
    the teacher is right on it and wrong on the whole image, or the reverse. The inner method compares the cells as if
    each were a sample with the label of its image.

    The defaults are those of the authors' code (shicaiwei123/SDD-CVPR2024, the example in its README): DKD as
    published, with cross-entropy at weight 1. With ``KD()`` inside, cross-entropy has weight 0.1 there, and this loss
    0.9. For resnet32x4→resnet8x4 the scripts take the scales 1 and 2 only; on ImageNet DKD has
    β = 0.5, τ = 1 and no warm-up.

    The published method is ``bias=None``. As SDD reads features, :class:`~lightning_biaskd.bias.BiasStrategy` drops the
    samples whose whole image the teacher gets wrong. It does not rectify cells: a cell may show only background, or a
    part that two classes share, and the method wants to teach the teacher's output there. A wrong cell of a right
    sample is therefore used unchanged.

    Args:
        distiller: the inner method, which reads logits; ``None`` for ``DKD()``.
        layer: the last feature map, (B, D, H, W), whose average the student's classifier reads.
        teacher_layer: the teacher's last feature map; ``None`` for the same name.
        scales: cells per side, the first of them 1.
        complementary_weight: w of complementary cells.

    Raises:
        UserError: the inner method reads features, or the scales don't begin with 1; when called, the outputs contain
            no map (B, D, H, W) or no classifier; in ``build``, the classifier does not read the map's average.

    Example:
        The teacher is right on the image and wrong on one of its quarters, which counts twice:

        >>> from lightning_biaskd.distillers import KD
        >>> quarters = torch.tensor([[[[1.0, 1.0], [1.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]]]])
        >>> teacher = Outputs(torch.tensor([[0.25, 0.0]]), {"-1": quarters}, head=torch.nn.Identity())
        >>> student = Outputs(torch.zeros(1, 2), {"-1": 0 * quarters}, head=torch.nn.Identity())
        >>> SDD(KD(1.0), scales=(1, 2))(student, teacher, torch.tensor([0]))
        tensor([0.1992])
    """

    reads = "features"

    def __init__(
        self,
        distiller: Distiller | None = None,
        layer: Layer = -1,
        teacher_layer: Layer | None = None,
        scales: Sequence[int] = (1, 2, 4),
        complementary_weight: float = 2.0,
    ) -> None:
        inner = DKD() if distiller is None else distiller
        if inner.needs.layers or inner.needs.embedding or inner.needs.index:
            raise UserError("SDD wraps a method that reads logits alone, without features and image indices")
        if not scales or scales[0] != 1 or min(scales) < 1:
            raise UserError(f"scales must begin with 1, the whole image, got {scales}")
        super().__init__(inner)
        own = layer_names(layer)
        others = own if teacher_layer is None else layer_names(teacher_layer)
        self.needs = self.needs | Needs(own, others, embedding=True)
        self.scales = tuple(scales)
        check_weights(complementary_weight=complementary_weight)
        self.complementary_weight = complementary_weight

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates nothing; refuses a map if the classifier does not read its average."""
        super().build(student, teacher, num_samples)
        for outputs, (layer,) in ((student, self.needs.layers), (teacher, self.needs.teacher_layers)):
            self._cells(outputs, layer)
            check_average("SDD", outputs, layer)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        student_cells = self._cells(student, self.needs.layers[0])
        teacher_cells = self._cells(teacher, self.needs.teacher_layers[0])
        shape = teacher_cells.shape[:2]
        y = target.unsqueeze(1).expand(shape)
        kept = None if keep is None else keep.unsqueeze(1).expand(shape).flatten()
        rows = Outputs(student_cells.flatten(0, 1)), Outputs(teacher_cells.flatten(0, 1))
        losses: Tensor = self.distiller(*rows, y.flatten(), kept)
        right = partition(rows[1].logits, y.flatten()).view(shape)
        weight = torch.where(right == right[:, :1], 1.0, self.complementary_weight)
        return (weight * losses.view(shape)).mean(1)

    def _cells(self, outputs: Outputs, layer: str) -> Tensor:
        feature = outputs.features.get(layer)
        if feature is None or feature.ndim != 4 or outputs.head is None:
            raise UserError(f"SDD needs the map (B, D, H, W) of layer {layer!r} and the classifier in the Outputs")
        return cell_logits(feature, outputs.head, self.scales)

    def extra_repr(self) -> str:
        return (
            f"layers={self.needs.layers}, teacher_layers={self.needs.teacher_layers}, scales={self.scales}, "
            f"complementary_weight={self.complementary_weight}"
        )
