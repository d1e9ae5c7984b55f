"""The contract of a distillation method."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.networks.tap import FeatureTap


class Distiller(nn.Module):
    r"""One published distillation method.

    ``forward`` returns **one loss per sample**, (B,), whose mean is the published loss. Who calls it reduces it:
    a plain mean, or :class:`~lightning_biaskd.bias.BiasStrategy`, which weighs right and wrong samples apart. So a
    method knows nothing of bias, and every method is bias-aware.

    Args:
        temperature: τ, at which the method compares teacher and student; a wrong teacher is rectified at the same.
        warmup_epochs: the method's weight grows linearly from ``1 / warmup_epochs`` in the first epoch to 1.

    Attributes:
        layers: the student's layers whose features the method reads, see :class:`~lightning_biaskd.FeatureTap`.
        teacher_layers: likewise the teacher's, in the same order.
        embedding: whether the method reads the embedding, or applies the classifier, of either network.
        rectifiable: whether it reads the teacher's logits, so that rectified ones may be handed over. The wrong samples
            of any other method are eliminated.
        reads_teacher: whether it reads the teacher at all; a method that doesn't has no bias to eliminate, so it keeps
            all samples, evenly weighted.
        pairwise: whether it compares the samples of a batch with each other; it then gets those of all ranks.
        views: how many views of the same images, one after the other in equal parts, a pairwise method's batch holds.
        remembers: whether it reads the numbers of the images, to keep a memory of them.
        ramp: buffer, the factor of the warm-up; 1 until :meth:`set_epoch` says otherwise.

    Example:
        A method of one's own is a subclass with one method:

        >>> class MSE(Distiller):
        ...     def forward(self, student, teacher, target, keep=None):
        ...         return (student.logits - teacher.logits).square().mean(1)
        >>> MSE()(Outputs(torch.zeros(2, 3)), Outputs(torch.ones(2, 3)), torch.tensor([0, 1]))
        tensor([1., 1.])
    """

    layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    embedding: bool = False
    rectifiable: bool = True
    reads_teacher: bool = True
    pairwise: bool = False
    views: int = 1
    remembers: bool = False
    ramp: Tensor

    def __init__(self, temperature: float = 1.0, warmup_epochs: int = 0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self._tau = temperature
        self.warmup_epochs = warmup_epochs
        # a tensor, because a float attribute that changes would recompile the step; a pure function of the epoch, so
        # no part of the checkpoint
        self.register_buffer("ramp", torch.tensor(1.0), persistent=False)

    @property
    def temperature(self) -> float:
        """τ, at which the method compares teacher and student."""
        return self._tau

    @property
    def builds(self) -> bool:
        """Whether the method has a :meth:`build` of its own, and so must see the networks' answers before training."""
        return type(self).build is not Distiller.build

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        """The method's loss.

        Args:
            student: the student's outputs.
            teacher: the teacher's outputs, without gradient; wrong rows may be rectified.
            target: (B,) labels.
            keep: (B,) bool, whose teacher knowledge may be used, ``None`` for all; only pairwise methods look at it.

        Returns:
            (B,) losses whose mean is the published loss.
        """
        raise NotImplementedError

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Makes what the method learns beside the student, such as adapters, from one answer of each network.

        :class:`~lightning_biaskd.DistillationModule` calls it once, before the optimizer is made; a loop of one's own
        calls it before it collects parameters. Most methods have nothing to make.

        Args:
            student: the student's outputs for a few images.
            teacher: the teacher's, for the same.
            num_samples: how many images are numbered, for methods with a memory.
        """

    def answer(self, student: Outputs) -> Outputs:
        """The student's outputs as it is deployed: its own, unless the method gives it another classifier."""
        return student

    def deployed(self, student: FeatureTap) -> nn.Module:
        """The network that is deployed, images to the logits of :meth:`answer`: the student itself, likewise."""
        return student.model

    def set_epoch(self, epoch: int) -> None:
        """Tells the method the 0-based epoch. What it schedules is a function of that alone, so resuming is exact."""
        self.ramp.fill_(min((epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0)

    def terms(self) -> Iterator[tuple[Distiller, float | Tensor]]:
        """The methods that this one is a weighted sum of, each with its weight; of a single method, itself.

        The weight of a method that warms up is a scalar tensor. Who calls methods one by one applies it.
        """
        yield self, self.ramp if self.warmup_epochs else 1.0

    def extra_repr(self) -> str:
        warmup = f", warmup_epochs={self.warmup_epochs}" if self.warmup_epochs else ""
        return f"temperature={self.temperature}{warmup}"


class Wrapper(Distiller):
    """A method around another: it has the other's temperature, reads what the other reads, and tells it the epoch.

    Args:
        distiller: the inner method.
    """

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller
        self.layers = distiller.layers
        self.teacher_layers = distiller.teacher_layers
        self.embedding = distiller.embedding
        self.reads_teacher = distiller.reads_teacher
        self.pairwise = distiller.pairwise
        self.views = distiller.views
        self.remembers = distiller.remembers

    @property
    def temperature(self) -> float:
        """The inner method's τ."""
        return self.distiller.temperature

    @property
    def builds(self) -> bool:
        """Whether the wrapper or the inner method has a :meth:`build` of its own."""
        return type(self).build is not Wrapper.build or self.distiller.builds

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """See :class:`Distiller`; the inner method is built."""
        self.distiller.build(student, teacher, num_samples)

    def answer(self, student: Outputs) -> Outputs:
        """See :class:`Distiller`; the inner method is asked."""
        return self.distiller.answer(student)

    def deployed(self, student: FeatureTap) -> nn.Module:
        """See :class:`Distiller`; the inner method is asked."""
        return self.distiller.deployed(student)

    def set_epoch(self, epoch: int) -> None:
        """See :class:`Distiller`; the inner method is told."""
        self.distiller.set_epoch(epoch)

    def terms(self) -> Iterator[tuple[Distiller, float | Tensor]]:
        """See :class:`Distiller`; the method warms up as the inner one does."""
        inner, weight = next(self.distiller.terms())
        yield self, weight if inner is self.distiller else 1.0
