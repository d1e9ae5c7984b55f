"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from lightning_biaskd.errors import UserError, check_positive
from lightning_biaskd.files import fingerprint
from lightning_biaskd.networks.inputs import InputSpec
from lightning_biaskd.networks.members import Members, Weights, mixture, uniform
from lightning_biaskd.networks.named_inputs import Input
from lightning_biaskd.networks.outputs import Outputs, at_least_float32
from lightning_biaskd.teachers.backends import Backend, Precision
from lightning_biaskd.teachers.frozen import FrozenTeacher


class EnsembleTeacher(FrozenTeacher):
    r"""Several teachers, whose answer is the weighted mean of their probabilities.

    .. math:: p = \sum_k w_k\, \mathrm{softmax}(z_k / \tau), \qquad z = \tau \log p

    It stands wherever a :class:`FrozenTeacher` does, with z as its logits. A :class:`~lightning_biaskd.BiasStrategy`
    tells right from wrong by z; with ``per_teacher=True`` it corrects or drops the answer of each teacher before the
    mean, so that one that is right isn't lost among others that are wrong. Methods that read features refuse it.

    Args:
        teachers: two or more trained networks with the same classes, or :class:`FrozenTeacher` where one has its own
            ``weights``, ``convert``, ``classes`` or ``precision``.
        weights: ``"mean"`` counts all alike. ``"confidence"`` weighs them on each training sample by the label, as
            CA-MKD does, see :func:`~lightning_biaskd.networks.members.confidence`. Where there is no label, as in the
            evaluation of the teacher, all count alike.
        temperature: τ. With the distiller's τ, KD from the ensemble is the weighted mean of KD from each, except for a
            term without gradient; 1 takes the mean of the probabilities as they are.

    Attributes:
        members: the teachers, each frozen.

    Raises:
        UserError: fewer than two teachers, one network twice, unknown ``weights``, a temperature that isn't positive;
            when called, teachers of different classes.

    Example:
        >>> first, second = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> outputs = EnsembleTeacher([first, second])(torch.zeros(2, 4))
        >>> outputs.logits.shape, outputs.members.logits.shape
        (torch.Size([2, 3]), torch.Size([2, 2, 3]))
    """

    def __init__(self, teachers: Sequence[nn.Module], weights: Weights = "mean", temperature: float = 1.0) -> None:
        nn.Module.__init__(self)  # the members have what FrozenTeacher would set up
        if isinstance(teachers, nn.Module) and not isinstance(teachers, nn.ModuleList):
            raise UserError(f"an ensemble takes a list of networks, and this is one {type(teachers).__name__}")
        if len(teachers) < 2 or any(isinstance(teacher, EnsembleTeacher) for teacher in teachers):
            raise UserError("an ensemble has two or more single teachers: give it their networks")
        if weights not in get_args(Weights):
            raise UserError(f"unknown weights {weights!r}: choose {' or '.join(get_args(Weights))}")
        check_positive(temperature=temperature)
        frozen = [FrozenTeacher.of(teacher) for teacher in teachers]
        if len({id(teacher.model) for teacher in frozen}) < len(frozen):
            raise UserError("an ensemble holds one network twice: build a network for each teacher")
        self._teachers = nn.ModuleList(frozen)
        self.__dict__["model"] = nn.ModuleList(teacher.model for teacher in frozen)
        self.weights: Weights = weights
        self.temperature = temperature
        self.as_built = any(teacher.as_built for teacher in frozen)
        self.told_untrained = False
        self.convert = self.classes = self.precision = None
        self.stream = any(teacher.stream for teacher in frozen)

    @property
    def members(self) -> tuple[FrozenTeacher, ...]:
        return tuple(self._teachers)  # type: ignore[arg-type]

    @property
    def backend(self) -> Backend:
        """How the teachers are run, by the first of them; setting it sets that of all."""
        return self.members[0].backend

    @backend.setter
    def backend(self, backend: Backend) -> None:
        for teacher in self.members:
            teacher.backend = backend

    @property
    def fault(self) -> str | None:  # type: ignore[override]
        """Why the outputs of one of them can't be stored."""
        return next((teacher.fault for teacher in self.members if teacher.fault is not None), None)

    def _apply(self, fn: Any, recurse: bool = True) -> EnsembleTeacher:
        return nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def reading(self, layers: Sequence[str], embedding: bool) -> EnsembleTeacher:
        """This ensemble; it has no features."""
        if layers or embedding:
            raise UserError("an ensemble of teachers has no features of its own: choose a method that reads logits")
        return self

    def configured(
        self,
        weights: str | None = None,
        input: InputSpec | Literal["pretrained"] | None = None,
        data_input: InputSpec | None = None,
        classes: Sequence[int] | None = None,
        backend: Backend | None = None,
        precision: Precision | None = None,
    ) -> EnsembleTeacher:
        """This ensemble with settings for each teacher, see :meth:`FrozenTeacher.configured`."""
        if weights is not None:
            raise UserError(
                "several teachers can't share teacher_weights: name each as FrozenTeacher with its model and weights"
            )
        if classes is not None and any(teacher.classes is not None for teacher in self.members):
            raise UserError("teacher_classes are for all teachers, and one has its own classes: give only one of both")
        settings = input, data_input, classes, backend, precision
        teachers = [teacher.configured(None, *settings) for teacher in self.members]
        return EnsembleTeacher(teachers, self.weights, self.temperature)

    def mean_of(self, outputs: Sequence[Outputs]) -> Outputs:
        """The ensemble's outputs, from those of its teachers."""
        shapes = sorted({tuple(output.logits.shape) for output in outputs})
        if len(shapes) > 1:
            remedy = "they need the same classes; give each that differs as FrozenTeacher with a ClassMap"
            if len({shape[1] for shape in shapes}) == 1:
                remedy = "they need maps of one size"
            raise UserError(
                f"the teachers of an ensemble give logits of shapes {', '.join(map(str, shapes))}: {remedy}"
            )
        logits = torch.stack([at_least_float32(output.logits) for output in outputs], 1)
        members = Members(logits, self.weights, self.temperature)
        return Outputs(mixture(logits, uniform(logits), self.temperature), members=members)

    def _outputs_of(self, image: Input) -> Outputs:
        return self.mean_of([teacher._outputs_of(image) for teacher in self.members])

    def fingerprint(self) -> str:
        """Identifies the outputs of all."""
        return fingerprint(*(teacher.fingerprint() for teacher in self.members))

    def extra_repr(self) -> str:
        return f"{len(self.members)} teachers, weights={self.weights!r}, temperature={self.temperature}"
