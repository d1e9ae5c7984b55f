"""Operations on logits, or on embeddings, that several methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.networks.outputs import at_least_float32


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r""":math:`\mathrm{KL}(\mathrm{softmax}(z^T) \,\|\, \mathrm{softmax}(z^S))` of each row.

    Args:
        student_logits: (B, C), already divided by the temperature.
        teacher_logits: (B, C), already divided by the temperature.

    Returns:
        (B,), in float32 at least.
    """
    log_s = F.log_softmax(at_least_float32(student_logits), dim=1)
    log_t = F.log_softmax(at_least_float32(teacher_logits), dim=1)
    return (log_t.exp() * (log_t - log_s)).sum(1)


def without_label(logits: Tensor, target: Tensor) -> Tensor:
    """Logits of the classes other than the label, in their order.

    Args:
        logits: (B, C).
        target: (B,) labels.

    Returns:
        (B, C - 1)

    Example:
        >>> without_label(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1]))
        tensor([[1., 3.]])
    """
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, others + (others >= target.unsqueeze(1)))


def split_label(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the label against the rest, and logits of the classes other than the label.

    Args:
        logits: (B, C).
        target: (B,) labels.

    Returns:
        (B, 2), whose softmax is the distribution over (label, rest), and (B, C - 1).

    Example:
        >>> pair, rest = split_label(torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([0]))
        >>> pair, rest
        (tensor([[1.0000, 2.6931]]), tensor([[2., 2.]]))
    """
    rest = without_label(logits, target)
    return torch.cat([logits.gather(1, target.unsqueeze(1)), rest.logsumexp(1, keepdim=True)], dim=1), rest


def kept_rows(x: Tensor, keep: Tensor | None) -> Tensor:
    """``keep`` (B,) as a mask (B, 1) of x (B, …); all samples if it is ``None``."""
    return torch.ones_like(x[:, :1], dtype=torch.bool) if keep is None else keep.unsqueeze(1)


def centred(x: Tensor, used: Tensor, dim: int = 0) -> Tensor:
    """Values (B, D) minus the mean of the used ones along ``dim``; 0 where they are not used.

    Args:
        x: (B, D).
        used: (B, 1) bool.
        dim: 0 for the mean over the samples, 1 for the mean of each sample.

    Example:
        >>> x = torch.tensor([[1.0], [3.0], [100.0]])
        >>> centred(x, torch.tensor([[True], [True], [False]])).T
        tensor([[-1.,  1.,  0.]])
    """
    count = used.expand_as(x).sum(dim, keepdim=True).clamp_min(1)
    return torch.where(used, x - torch.where(used, x, 0).sum(dim, keepdim=True) / count, 0)


def standardised(x: Tensor, used: Tensor, eps: float) -> Tensor:
    r""":math:`(x - \mu_d) / \sqrt{\sigma_d^2 + \epsilon}` by mean and biased variance of the used samples; 0 elsewhere.

    Args:
        x: (B, D).
        used: (B, 1) bool.
        eps: :math:`\epsilon`.
    """
    deviation = centred(x, used)
    return deviation / (deviation.square().sum(0) / used.sum().clamp_min(1) + eps).sqrt()
