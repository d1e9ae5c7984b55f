"""Contrastive representation distillation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_biaskd.distiller import Needs
from lightning_biaskd.distributed.gather import gather
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller, embeddings, full_matmul, unit
from lightning_biaskd.features.connectors import Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.randomness.bits import GOLDEN, hashed, mix

_EPS = 1e-7


def crd_loss(scores: Tensor, num_samples: int) -> Tensor:
    """Noise-contrastive estimation: telling each anchor's partner from random draws; see :class:`CRD`.

    Args:
        scores: (B, 1 + K), positive: the partner's, then those of K negatives. They are normalised so that the
            scores of all samples add up to about 1.
        num_samples: N, the number of samples among which negatives are drawn.

    Returns:
        (B,)

    Example:
        >>> crd_loss(torch.tensor([[0.5, 0.5]]), num_samples=2)
        tensor([1.3863])
    """
    noise = (scores.shape[1] - 1) / num_samples
    partner, negatives = scores[:, 0], scores[:, 1:]
    return torch.log1p((noise + _EPS) / partner) + torch.log1p((negatives + _EPS) / noise).sum(1)


def draw_negatives(labels: Tensor, target: Tensor, seed: Tensor, count: int) -> Tensor:
    """Draws the indices of samples of other classes, uniformly and with replacement.

    Args:
        labels: (N,) of all samples; -1 for unknown, which counts as another class.
        target: (B,) labels of the anchors.
        seed: (B,) int64; the draws of each anchor are a function of it.
        count: K, the number of draws for each anchor.

    Returns:
        (B, K) int64. An anchor's own class is drawn only if there is no other.

    Example:
        >>> labels, target = torch.tensor([0, 1, 0, 2]), torch.tensor([0, 2])
        >>> drawn = draw_negatives(labels, target, torch.tensor([5, 6]), 100)
        >>> sorted(set(drawn[0].tolist())), sorted(set(drawn[1].tolist()))
        ([1, 3], [0, 1, 2])
    """
    order = labels.argsort(stable=True)
    by_class = labels[order]
    first = torch.searchsorted(by_class, target).unsqueeze(1)
    own = torch.searchsorted(by_class, target, right=True).unsqueeze(1) - first
    bits = hashed(mix(seed).unsqueeze(1) + torch.arange(count, device=seed.device))
    among_others = bits % (len(labels) - own).clamp_min(1)
    skipping_own = among_others + torch.where(among_others < first, 0, own)
    return order[skipping_own.clamp_max(len(labels) - 1)]


class CRD(FeatureDistiller):
    r"""Tian, Krishnan, Isola, *Contrastive Representation Distillation*, ICLR 2020, arXiv 1910.10699.

    Student and teacher each have a learned linear map into a common space, :math:`v^S_i, v^T_i` of length 1, and a
    memory :math:`m^S, m^T` of earlier embeddings of each of the N images. With K negatives n drawn from other classes,

    .. math::
        \ell_i = c(v^S_i, m^T) + c(v^T_i, m^S), \qquad
        c(v, m) = -\log\frac{h_i}{h_i + K/N} - \sum_{n} \log\frac{K/N}{h_n + K/N}, \qquad
        h_j = \frac{e^{v \cdot m_j/\tau}}{Z}

    where Z is set once, so that in the first step the mean of h is 1/N. After the loss, the memories are updated with
    the images of the batch: :math:`m_i \leftarrow \mu m_i + (1 - \mu) v_i`, scaled to length 1.

    The defaults are those of the authors' code (HobbitLong/RepDistiller), with the loss at weight 0.8 and cross-entropy
    at 1. With the same negatives and memories the loss is theirs too. Only the draws differ: theirs are without
    replacement if there are enough samples; here they are a function of a step counter and of the image's index.

    The result does not depend on the number of processes, and a resumed run continues exactly: Z and the memories are
    computed from the batch of all ranks, are in the state dict, and are identical on every rank. They are parameters
    without gradient and not buffers, because DDP broadcasts buffers in every step. In eval mode they do not change.

    * If an image occurs several times in a batch (as two views, or in a last batch that a sampler fills up), the
      memories take its last occurrence, in the order of the ranks.
    * With ``keep``, a dropped sample changes neither memory nor Z. The teacher's memory therefore only holds embeddings
      of views that the teacher got right. Images the teacher never got right keep their random initial vectors, and so
      do images that are held out for validation.
    * The method learns each label when it first sees the image. In the first epoch a negative may therefore have the
      anchor's class, but its vector is still random.

    Args:
        dim: the dimension of the common space.
        negatives: K, the number of negatives for each sample.
        temperature: τ.
        momentum: μ.

    Raises:
        UserError: no negatives, a temperature that is not positive, or a momentum outside [0, 1); when called before
            ``build``, without embeddings or without the images' indices; in ``build``, without the number of images.
    """

    needs = Needs(embedding=True, index=True)
    student_memory: Tensor
    teacher_memory: Tensor
    labels: Tensor
    normalizers: Tensor
    step: Tensor

    def __init__(
        self, dim: int = 128, negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        super().__init__()
        if negatives < 1 or not temperature > 0 or not 0 <= momentum < 1:
            raise UserError(
                "negatives must be at least 1, temperature positive and momentum in [0, 1), got "
                f"{negatives}, {temperature} and {momentum}"
            )
        self.dim = dim
        self.negatives = negatives
        self.contrast_temperature = temperature
        self.momentum = momentum
        self.connectors = nn.ModuleList()

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the linear maps and the memories."""
        if num_samples is None:
            raise UserError(
                "CRD remembers every image, so it must know how many there are: give the data module a num_samples, or "
                "call rehearse(image, num_samples)"
            )
        own, others = embeddings(student, teacher)
        maps: list[nn.Module] = [Connector(nn.Linear(e.shape[1], self.dim)) for e in (own, others)]
        self.connectors = to_device_of(maps, own)
        bound = math.sqrt(3 / self.dim)
        for name in ("student_memory", "teacher_memory"):
            memory = own.new_empty(num_samples, self.dim).uniform_(-bound, bound)
            self.register_parameter(name, nn.Parameter(memory, requires_grad=False))
        labels = torch.full((num_samples,), -1, device=own.device)
        self.register_parameter("labels", nn.Parameter(labels, requires_grad=False))
        self.register_buffer("normalizers", own.new_zeros(2))  # of student and teacher, 0 until they are set
        self.register_buffer("step", torch.randint(2**62, (), device=own.device))  # so that draws differ between seeds

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        maps = require_built(self.connectors)
        if student.index is None:
            raise UserError("CRD needs the index of each image: pass with_index(student, index)")
        anchors = [unit(embed(e)) for embed, e in zip(maps, embeddings(student, teacher), strict=True)]
        negatives = draw_negatives(self.labels, target, self.step + student.index * GOLDEN, self.negatives)
        drawn = torch.cat([student.index.unsqueeze(1), negatives], dim=1)
        # copies, as the memories change before the backward pass
        memories = [at_least_float32(m.detach().clone()) for m in (self.teacher_memory, self.student_memory)]
        scores = [
            (full_matmul(v, m.to(v.dtype).T).gather(1, drawn) / self.contrast_temperature).exp()
            for v, m in zip(anchors, memories, strict=True)
        ]
        kept = torch.ones_like(target, dtype=torch.bool) if keep is None else keep
        with torch.no_grad():
            batch = torch.cat([*anchors, *(s.mean(1, keepdim=True) for s in scores)], dim=1)
            facts = torch.stack([student.index, target, kept.long()], dim=1)
            if self.training:
                batch, facts = gather(batch), gather(facts)
            normalizers = self._normalizers(batch[:, -2:], facts[:, 2:])
            if self.training:
                self._remember((batch[:, : self.dim], batch[:, self.dim : -2]), facts)
                self.normalizers.copy_(normalizers)
                self.step.add_(1)
        safe = normalizers.where(normalizers > 0, 1)
        losses = [crd_loss(s / z, len(self.labels)) for s, z in zip(scores, safe, strict=True)]
        return torch.where(kept, losses[0] + losses[1], 0)

    def _normalizers(self, mean_scores: Tensor, kept: Tensor) -> Tensor:
        """Z of student and teacher: as stored, otherwise computed from this batch; 0 if it has no kept sample."""
        mean = (mean_scores * kept).sum(0) / kept.sum(0).clamp_min(1)
        return self.normalizers.where(self.normalizers > 0, mean * len(self.labels)).to(mean_scores.dtype)

    def _remember(self, anchors: tuple[Tensor, ...], facts: Tensor) -> None:
        """Updates the memories with a batch of all ranks."""
        index, target, kept = facts.unbind(1)
        places = kept * torch.arange(1, len(kept) + 1, device=kept.device)
        last = torch.zeros_like(self.labels).scatter_reduce(0, index, places, "amax")[index]  # 0: all are dropped
        row, known = (last - 1).clamp_min(0), last > 0
        for memory, v in zip((self.student_memory, self.teacher_memory), anchors, strict=True):
            old = memory[index]
            new = unit(self.momentum * old.to(v.dtype) + (1 - self.momentum) * v[row])
            memory.index_copy_(0, index, torch.where(known.unsqueeze(1), new.to(old.dtype), old))
        self.labels.index_copy_(0, index, torch.where(known, target[row], self.labels[index]))

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, negatives={self.negatives}, temperature={self.contrast_temperature}, "
            f"momentum={self.momentum}"
        )
