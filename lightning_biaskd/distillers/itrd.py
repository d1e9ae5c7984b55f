"""Information-theoretic representation distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_biaskd.distiller import Needs
from lightning_biaskd.errors import check_positive, check_weights
from lightning_biaskd.features.base import FeatureDistiller, embeddings, full_matmul, unit
from lightning_biaskd.features.connectors import Connector, require_built, to_device_of
from lightning_biaskd.logits import centred, kept_rows
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def correlation_loss(student: Tensor, teacher: Tensor, alpha: float, keep: Tensor | None = None) -> Tensor:
    """How far each dimension of two embeddings is from being correlated over the batch; see :class:`ITRD`.

    Args:
        student: (B, D).
        teacher: (B, D).
        alpha: α, Rényi's order.
        keep: (B,) bool, the samples that count; ``None`` for all. The others get loss 0.

    Returns:
        (B,), the same for all kept samples; 0 if there are fewer than two, which have no correlation.

    Example:
        Of two samples with the same two dimensions, each correlation counts as 1/2, so the loss is log2(2 · 0.5²):

        >>> embedding = torch.tensor([[1.0, 0.0], [0.0, 4.0]])
        >>> correlation_loss(embedding, 3 * embedding, alpha=1.0)
        tensor([-1., -1.])
    """
    used = kept_rows(student, keep)
    count = used.sum()
    s, t = (unit(centred(at_least_float32(x), used), dim=0) for x in (student, teacher))
    correlation = (s * t).sum(0) * (count - 1) / count.clamp_min(1)
    distance = (correlation - 1).square().pow(alpha).sum()
    return torch.where(used.squeeze(1), distance.where(count > 1, 1).log2(), 0)


def mutual_loss(student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
    """How much more similar samples are to the student than to both networks at once; see :class:`ITRD`.

    Args:
        student: (B, D).
        teacher: (B, E).
        keep: (B,) bool, the samples that count; ``None`` for all. The others get loss 0.

    Returns:
        (B,). The mean over the kept samples is the published loss of these samples alone.

    Example:
        The student finds two samples equal that differ for the teacher:

        >>> mutual_loss(torch.ones(2, 1), torch.eye(2))
        tensor([0.5000, 0.5000])
    """
    used = kept_rows(student, keep)
    s, t = (torch.where(used, unit(at_least_float32(x)), 0) for x in (student, teacher))
    own, joint = full_matmul(s, s.T), full_matmul(s, s.T) * full_matmul(t, t.T)
    own, joint = (gram / gram.diagonal().sum().clamp_min(1e-12) for gram in (own, joint))
    return used.sum() * (own.square() - joint.square()).sum(1)


class ITRD(FeatureDistiller):
    r"""Miles, Lopez-Rodriguez, Mikolajczyk, *Information Theoretic Representation Distillation*, BMVC 2022.

    arXiv 2112.00459. With P a learned linear map, :math:`\rho_d` the correlation of dimension d of :math:`P e^S` and
    :math:`e^T` over the B samples of the batch, and G the matrices of cosines between samples, scaled to trace 1,

    .. math::
        L = \lambda_c \log_2 \sum_d \Big|1 - \frac{B-1}{B} \rho_d\Big|^{2\alpha}
            + \lambda_m \Big( \|G^S\|_F^2 - \|G^{ST}\|_F^2 \Big), \qquad
        G^{ST} \propto G^S \odot G^T

    G of the student is of :math:`P e^S` if the embeddings have different sizes, otherwise of :math:`e^S`. This is the
    authors' code (roymiles/ITRD). A dimension without variance, of which their loss is not a number, counts as
    uncorrelated. :math:`(B-1)/B` comes from their unbiased standard deviation.

    The logarithm cannot be divided among the samples, so each has all of the first part; of the second, each has B
    times its row. With ``keep``, both are over the kept samples; under DDP they are over the global batch. The
    embeddings are what the classifiers read.

    The defaults are those of the authors' example for wrn_40_2→wrn_16_2, with the weight 1 and cross-entropy at 1.
    Their program's own are :math:`\lambda_m` 0.05 and α 1.5.

    Args:
        correlation_weight: :math:`\lambda_c`.
        mutual_weight: :math:`\lambda_m`.
        alpha: α, Rényi's order.

    Raises:
        UserError: α is not positive; when called before ``build`` or without embeddings.
    """

    needs = Needs(embedding=True, pairwise=True)

    def __init__(self, correlation_weight: float = 2.0, mutual_weight: float = 1.0, alpha: float = 1.01) -> None:
        super().__init__()
        check_positive(alpha=alpha)
        check_weights(correlation_weight=correlation_weight, mutual_weight=mutual_weight)
        self.correlation_weight = correlation_weight
        self.mutual_weight = mutual_weight
        self.alpha = alpha
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the linear map."""
        s, t = embeddings(student, teacher)
        self.connectors = to_device_of([Connector(nn.Linear(s.shape[1], t.shape[1]))], s)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        (embed,) = require_built(self.connectors)
        s, t = embeddings(student, teacher)
        projected = embed(s)
        correlation = correlation_loss(projected, t, self.alpha, keep)
        mutual = mutual_loss(s if s.shape == t.shape else projected, t, keep)
        return self.correlation_weight * correlation + self.mutual_weight * mutual

    def extra_repr(self) -> str:
        return f"correlation_weight={self.correlation_weight}, mutual_weight={self.mutual_weight}, alpha={self.alpha}"
