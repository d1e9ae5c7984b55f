"""Correlation congruence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.distiller import Needs
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, embeddings
from lightning_biaskd.features.connectors import Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def cc_loss(student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
    """The correlation loss, divided among the samples; see :class:`CC`.

    Args:
        student: (B, D).
        teacher: (B, D).
        keep: (B,) bool, the samples that count; ``None`` for all. The others get loss 0.

    Returns:
        (B,). The mean over the kept samples is the published loss of these samples alone.

    Example:
        The differences are 1, 2 and 3, so the products are 2 and 6. Without the second sample, the product is 3:

        >>> s, t = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
        >>> cc_loss(s, t)
        tensor([1.5000, 6.0000, 4.5000])
        >>> cc_loss(s, t, keep=torch.tensor([True, False, True]))
        tensor([3., 0., 3.])
    """
    gap = (at_least_float32(student) - at_least_float32(teacher)).abs()
    kept = torch.ones_like(gap[:, 0], dtype=torch.bool) if keep is None else keep
    order = kept.logical_not().to(torch.uint8).argsort(stable=True)  # the kept ones first, in their order
    gap, count = gap[order], kept.sum()
    both = torch.arange(1, len(gap), device=gap.device) < count
    products = torch.where(both, (gap[:-1] * gap[1:]).sum(1), 0)
    losses = (F.pad(products, (0, 1)) + F.pad(products, (1, 0))) / 2
    return losses[order.argsort()] * count / (count - 1).clamp_min(1)


class CC(FeatureDistiller):
    r"""Peng et al., *Correlation Congruence for Knowledge Distillation*, ICCV 2019, arXiv 1904.01802.

    Two learned linear maps bring the embeddings of student and teacher to equal size, :math:`e^S_i` and
    :math:`e^T_i`. With :math:`\delta_i = |e^S_i - e^T_i|`,

    .. math:: L = \frac{1}{B - 1} \sum_{i=1}^{B-1} \delta_i^\top \delta_{i+1}

    This is the loss of RepDistiller, which its author took from the authors' code and which other papers use as the
    baseline. It relates each sample to the next one in the batch. The paper and torchdistill compare all pairs instead.

    Each sample gets half of the term of each of its pairs, so that the mean of the losses is L. With ``keep``, a
    sample's neighbour is the next kept one. Under DDP the batch is the global batch, rank after rank.

    Size and the loss's weight of 0.02 with cross-entropy at 1 are RepDistiller's, which trains both maps, the
    teacher's too.

    Args:
        dim: size of the embeddings that are compared.

    Raises:
        UserError: ``dim`` is not positive, or the method is called before ``build``.
    """

    needs = Needs(embedding=True, pairwise=True)

    def __init__(self, dim: int = 128) -> None:
        if dim < 1:
            raise UserError(f"dim must be at least 1, got {dim}")
        super().__init__()
        self.dim = dim
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the linear maps, the student's and the teacher's."""
        pair = embeddings(student, teacher)
        self.connectors = to_device_of([Connector(nn.Linear(x.shape[1], self.dim)) for x in pair], pair[0])

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        maps = require_built(self.connectors)
        s, t = (connector(x) for connector, x in zip(maps, embeddings(student, teacher), strict=True))
        return cc_loss(s, t, keep)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
