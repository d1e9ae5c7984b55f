"""The contract of a distillation method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_biaskd.errors import UserError, check_positive
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.networks.tap import FeatureTap

Reads = Literal["logits", "features", "nothing"]
Dense = Literal["rows", "maps", "images"]

_RENAMED = {
    **dict.fromkeys(("layers", "teacher_layers", "embedding", "pairwise", "views"), "needs = Needs({}=…)"),
    "remembers": "needs = Needs(index=True)",
    "rectifiable": 'reads = "features"',
    "reads_teacher": 'reads = "nothing"',
    "answer": "outputs_of",
}
"""Attributes of version 0.1, and what to write in their place."""


@dataclass(frozen=True)
class Needs:
    """What a method needs from the networks and from the batch.

    ``a | b`` combines the needs of two methods.

    Attributes:
        layers: the student's layers whose features the method reads, see :class:`~lightning_biaskd.FeatureTap`.
        teacher_layers: the teacher's layers, in the same order.
        embedding: the method reads the embedding of either network, or applies its classifier.
        index: the method reads the index of each image in its data set, for example to keep a memory.
        pairwise: the method compares the samples of a batch with each other, so it gets those of all ranks.
        views: the number of views of the same images in a batch, one after the other in equal parts.

    Example:
        >>> Needs(layers=("-1",)) | Needs(layers=("-2", "-1"), pairwise=True)
        Needs(layers=('-1', '-2'), teacher_layers=(), embedding=False, index=False, pairwise=True, views=1)
    """

    layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    embedding: bool = False
    index: bool = False
    pairwise: bool = False
    views: int = 1

    def __or__(self, other: Needs) -> Needs:
        if self.views != other.views and 1 not in (self.views, other.views):
            raise UserError(
                f"one method compares {self.views} views and another {other.views}: give both the same number of views"
            )
        return Needs(
            tuple(dict.fromkeys(self.layers + other.layers)),
            tuple(dict.fromkeys(self.teacher_layers + other.teacher_layers)),
            self.embedding or other.embedding,
            self.index or other.index,
            self.pairwise or other.pairwise,
            max(self.views, other.views),
        )


class Distiller(nn.Module):
    r"""One published distillation method.

    ``forward`` returns **one loss per sample**, (B,), whose mean is the published loss. The caller reduces it: by a
    plain mean, or by :class:`~lightning_biaskd.bias.BiasStrategy`, which weighs right and wrong samples separately. A
    method therefore knows nothing of bias, and every method becomes bias-aware.

    Calling the method, ``distiller(student, teacher, target)``, multiplies the losses of ``forward`` by the factor of
    the warm-up. This is the only place where it is applied.

    Args:
        temperature: τ, at which the method compares teacher and student. A wrong teacher is rectified at the same τ.
        warmup_epochs: the method's weight grows linearly from ``1 / warmup_epochs`` in the first epoch to 1.

    Attributes:
        reads: what the method reads of the teacher. ``"logits"`` can be rectified. The wrong samples of a method that
            reads ``"features"`` are dropped. A method that reads ``"nothing"`` of the teacher keeps all samples.
        needs: what else it needs, a :class:`Needs`.
        least_classes: the smallest number of classes with which the method's loss teaches anything. The method refuses
            fewer. In a wrapper or a sum, each method checks its own.
        soft_labels: whether the method reads of the teacher nothing but :math:`\mathrm{softmax}(z^T/\tau)`, so that a
            cache may store the largest logits only, see :class:`~lightning_biaskd.TeacherCache`.
        ramp: buffer, the factor of the warm-up. It is 1 until :meth:`set_epoch` is called.

    Raises:
        UserError: the temperature is not positive, or the warm-up is negative; when called, there are fewer classes
            than the method can work with.

    Example:
        A new method is a subclass with one method:

        >>> class MSE(Distiller):
        ...     def forward(self, student, teacher, target, keep=None):
        ...         return (student.logits - teacher.logits).square().mean(1)
        >>> MSE()(Outputs(torch.zeros(2, 3)), Outputs(torch.ones(2, 3)), torch.tensor([0, 1]))
        tensor([1., 1.])
    """

    reads: Reads = "logits"
    needs: Needs = Needs()
    least_classes: int = 2
    soft_labels: bool = False
    ramp: Tensor

    def __init__(self, temperature: float = 1.0, warmup_epochs: int = 0) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        if warmup_epochs < 0:
            raise UserError(f"warmup_epochs must not be negative, got {warmup_epochs}")
        self._tau = temperature
        self.warmup_epochs = warmup_epochs
        # a tensor, because a float attribute that changes would recompile the step; a pure function of the epoch, so
        # it needs no place in the checkpoint
        self.register_buffer("ramp", torch.tensor(1.0), persistent=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls).keys() & _RENAMED.keys():
            _refuse(cls, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _RENAMED and not isinstance(value, nn.Module):
            _refuse(type(self), name)
        super().__setattr__(name, value)

    @property
    def temperature(self) -> float:
        """τ, at which the method compares teacher and student."""
        return self._tau

    @property
    def dense(self) -> Dense | None:
        """What the method does with logits (B, C, …), whose labels are (B, …).

        * ``"rows"``: each pixel or token is a sample of its own.
        * ``"maps"``: :meth:`forward` gets outputs, labels and ``keep`` as maps, and returns a loss for each label.
        * ``"images"``: it reads features, and its loss is one for each image.
        * ``None``: it has no such loss.
        """
        needs = self.needs
        if needs.pairwise or needs.embedding or needs.index or needs.views > 1:
            return None
        return "images" if needs.layers or needs.teacher_layers else "rows"

    @property
    def builds(self) -> bool:
        """Whether the method has its own :meth:`build`, so that it must see both networks' outputs before training."""
        return type(self).build is not Distiller.build

    def __call__(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        """The losses (B,) of :meth:`forward`, times the factor of the warm-up.

        Raises:
            UserError: too few classes, or a method that doesn't give one loss for each sample.
        """
        classes = student.logits.shape[1]
        if classes < self.least_classes:
            remedy = "give a binary problem two logits" if self.least_classes == 2 else "choose KD, which needs 2"
            raise UserError(
                f"{type(self).__name__} teaches nothing with {classes} class{'es' if classes > 1 else ''}, as it needs "
                f"at least {self.least_classes}: {remedy}"
            )
        losses: Tensor = super().__call__(student, teacher, target, keep)
        shape = student.logits.shape
        if not isinstance(losses, Tensor):
            raise UserError(
                f"{type(self).__name__} gives losses of type {type(losses).__name__}: return a tensor with one for "
                f"each sample, ({shape[0]},)"
            )
        if losses.shape not in (shape[:1], shape[:1] + shape[2:]):
            raise UserError(
                f"{type(self).__name__} gives losses of shape {tuple(losses.shape)} for logits {tuple(shape)}: return "
                f"one for each sample, ({shape[0]},), without a mean over the batch"
            )
        return losses * self.ramp if self.warmup_epochs else losses

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        """The method's losses, without warm-up.

        Args:
            student: the student's outputs.
            teacher: the teacher's outputs, without gradient; wrong rows may be rectified.
            target: (B,) labels.
            keep: (B,) bool, the samples whose teacher outputs may be used; ``None`` for all. Only methods that compare
                samples with each other use it.

        Returns:
            (B,) losses whose mean is the published loss.
        """
        raise NotImplementedError

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates what the method itself learns, such as adapters, from the outputs of both networks.

        :class:`~lightning_biaskd.DistillationModule` calls it once, before the optimizer is created. In another loop,
        call it before you collect the parameters. Most methods have nothing to create.

        Args:
            student: the student's outputs for a few images.
            teacher: the teacher's outputs for the same images.
            num_samples: size of the data set, for methods that keep a memory of every image.
        """

    def outputs_of(self, student: Outputs) -> Outputs:
        """The outputs of the network to deploy: the student's own, unless the method replaces its classifier."""
        return student

    def deployed(self, student: FeatureTap) -> nn.Module:
        """The network to deploy, from images to the logits of :meth:`outputs_of`: the student, unless replaced."""
        return student.model

    def deployed_layers(self) -> Iterable[nn.Module]:
        """The method's own layers in the network to deploy, such as a projector. ``EMA`` averages them, too."""
        return ()

    def set_epoch(self, epoch: int) -> None:
        """Sets the method's schedules. They depend on the 0-based epoch alone, so that resuming is exact."""
        self.ramp.fill_(min((epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0)

    def terms(self) -> Iterator[tuple[Distiller, float]]:
        """The methods that this one is a weighted sum of, with their weights. A single method yields itself."""
        yield self, 1.0

    def extra_repr(self) -> str:
        warmup = f", warmup_epochs={self.warmup_epochs}" if self.warmup_epochs else ""
        return f"temperature={self.temperature}{warmup}"


class Wrapper(Distiller):
    """A method that wraps another. It has the inner method's temperature, and reads and needs what that method does.

    A subclass may need more: it extends ``needs``, or sets ``reads = "features"`` where the inner method's logits are
    no longer the teacher's.

    Args:
        distiller: the inner method.
    """

    least_classes = 1

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller
        self.needs = self.needs | distiller.needs
        self.reads = max(self.reads, distiller.reads, key=get_args(Reads).index)

    @property
    def temperature(self) -> float:
        """The inner method's τ."""
        return self.distiller.temperature

    @property
    def dense(self) -> Dense | None:
        """What the inner method does, unless the wrapper needs more than that."""
        return self.distiller.dense if self.needs == self.distiller.needs else super().dense

    @property
    def builds(self) -> bool:
        """Whether the wrapper or the inner method has its own :meth:`build`."""
        return type(self).build is not Wrapper.build or self.distiller.builds

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Builds the inner method."""
        self.distiller.build(student, teacher, num_samples)

    def outputs_of(self, student: Outputs) -> Outputs:
        """The inner method's outputs."""
        return self.distiller.outputs_of(student)

    def deployed(self, student: FeatureTap) -> nn.Module:
        """The inner method's network to deploy."""
        return self.distiller.deployed(student)

    def deployed_layers(self) -> Iterable[nn.Module]:
        """The inner method's layers in the network to deploy."""
        return self.distiller.deployed_layers()

    def set_epoch(self, epoch: int) -> None:
        """Sets the inner method's schedules."""
        self.distiller.set_epoch(epoch)


def _refuse(cls: type, name: str) -> None:
    raise UserError(
        f"{cls.__name__} sets {name!r}, an attribute of version 0.1: set {_RENAMED[name].format(name)} instead"
    )
