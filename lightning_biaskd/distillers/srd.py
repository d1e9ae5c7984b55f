"""Simple recipe distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_biaskd.distiller import Needs
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, embeddings
from lightning_biaskd.features.connectors import Connector, require_built, to_device_of
from lightning_biaskd.logits import kept_rows, standardised
from lightning_biaskd.networks.outputs import Outputs, at_least_float32

_EPS = 1e-4


def srd_loss(student: Tensor, teacher: Tensor, exponent: float, keep: Tensor | None = None) -> Tensor:
    """The logarithm of the distance of two embeddings that are normalised over the batch; see :class:`SRD`.

    Args:
        student: (B, D).
        teacher: (B, D).
        exponent: p, of the differences.
        keep: (B,) bool, the samples that count; ``None`` for all. The others get loss 0.

    Returns:
        (B,), the same for all kept samples; 0 if there are fewer than two, which cannot be normalised.

    Example:
        >>> student = torch.tensor([[1.0], [-1.0]])
        >>> srd_loss(student, -student, exponent=2.0)  # log(2² + 2²), but for an epsilon
        tensor([2.0793, 2.0793])
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    used = kept_rows(student, keep)
    distance = (standardised(student, used, _EPS) - standardised(teacher, used, _EPS)).abs().pow(exponent).sum()
    loss = distance.clamp_min(torch.finfo(distance.dtype).tiny).where(used.sum() > 1, 1).log()
    return torch.where(used.squeeze(1), loss, 0)


class SRD(FeatureDistiller):
    r"""Miles, Mikolajczyk, *Understanding the Role of the Projector in Knowledge Distillation*, AAAI 2024.

    arXiv 2303.11098; Simple Recipe Distillation. With E the embeddings of the batch, P a learned linear map, and N
    normalisation of each dimension over the batch to zero mean and unit variance (plus 1e-4 in its square),

    .. math::
        L = \log \sum_{id} \big| N(P E^S)_{id} - N(E^T)_{id} \big|^p

    The logarithm of a sum over the batch cannot be divided among samples, so every sample's loss is L. With ``keep``,
    normalisation and sum are over the kept samples; under DDP they are over the global batch. The embeddings are what
    the classifiers read: of a ResNet, the average of the last map, as in the authors' code
    (roymiles/Simple-Recipe-Distillation, ``log_bn_corr_4``) and in torchdistill.

    Their P also has a bias, which N removes. On ImageNet the authors use twice this loss, plus KD at temperature 1,
    plus cross-entropy; ``srd.yaml`` does the same.

    Args:
        exponent: p, of the differences.

    Raises:
        UserError: an exponent below 1; when called before ``build`` or without embeddings.
    """

    needs = Needs(embedding=True, pairwise=True)

    def __init__(self, exponent: float = 4.0) -> None:
        super().__init__()
        if not exponent >= 1:
            raise UserError(f"exponent must be at least 1, got {exponent}")
        self.exponent = exponent
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the projector."""
        s, t = embeddings(student, teacher)
        self.connectors = to_device_of([Connector(nn.Linear(s.shape[1], t.shape[1], bias=False))], s)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        (projector,) = require_built(self.connectors)
        s, t = embeddings(student, teacher)
        return srd_loss(projector(s), t, self.exponent, keep)

    def extra_repr(self) -> str:
        return f"exponent={self.exponent}"
