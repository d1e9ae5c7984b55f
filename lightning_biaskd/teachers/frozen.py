"""The frozen teacher: it runs in every step, but is never trained, saved or communicated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import fingerprint
from lightning_biaskd.networks.class_map import ClassMap
from lightning_biaskd.networks.inputs import InputConversion, InputSpec, conversion
from lightning_biaskd.networks.kinds import graph_constants, is_graph, own_dtype, unwrapped
from lightning_biaskd.networks.named_inputs import Input, converted, copied, one_of
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.networks.tap import FeatureTap
from lightning_biaskd.networks.weights import load_weights
from lightning_biaskd.teachers.backends import Backend, Precision, accelerate, half_precision, plain
from lightning_biaskd.teachers.stream import join_side_stream, on_side_stream
from lightning_biaskd.teachers.trial import tried

if TYPE_CHECKING:
    from typing_extensions import Self


class FrozenTeacher(nn.Module):
    """A network whose weights never change, for use as a teacher.

    The network is kept out of the module tree, so it has no parameters, buffers or state dict for the rest of the
    program: no optimizer updates it, no checkpoint contains it, DDP neither broadcasts nor reduces it, and
    SyncBatchNorm conversion skips it. It still follows ``.to()``, ``.cuda()`` and ``.half()``, stays in eval mode
    through every ``.train()``, and its forward records no graph.

    TorchScript and exported programs are accepted for methods that read logits only. A network inside
    ``torch.compile``, ``DataParallel`` or DDP is taken out of it. A network in half precision runs in its own precision
    unless ``precision`` says otherwise, and its logits are float32.

    The first call tries the network on a few images. A warning says if its outputs are probabilities, differ from call
    to call, or depend on the other images in the batch.

    Args:
        model: the trained network. A :class:`~lightning_biaskd.ClassificationModule` loads its own ``weights``.
        weights: where to load its weights from (see :func:`~lightning_biaskd.networks.weights.load_weights`);
            ``None`` takes the network as it is.
        layers: layers whose output a feature distiller reads, see :class:`~lightning_biaskd.FeatureTap`.
        embedding: whether the outputs include the classifier and what it reads. Its parameters are frozen, so it
            records no graph on the teacher's features either.
        convert: converts images to the network's training format; ``None`` if they already have it.
        classes: puts the logits in the order of the data set's classes; ``None`` if they already are.
        backend: how the network is run, see :func:`~lightning_biaskd.teachers.backends.accelerate`. The first call
            prepares it, with the weights of that moment; if calls will be compiled, make one before.
        precision: of its weights and arithmetic; ``None`` for its own if that is half precision, and otherwise the
            Trainer's.
        stream: on a GPU, let :meth:`queue` use a CUDA stream of its own, so that the network's work may overlap with
            the student's forward.

    Attributes:
        model: the network itself.
        as_built: whether the network came with its weights, as no ``weights`` were given.
        told_untrained: whether a warning has said that the network seems untrained.
        fault: why its outputs can't be stored in a cache; ``None`` if they can, or before the first call.

    Raises:
        UserError: weights that don't fit the network, parameters without values, or an unknown layer; in the first
            call, images that the network does not take.

    Example:
        >>> teacher = FrozenTeacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
        >>> teacher(torch.zeros(2, 1, 2, 2)).logits.requires_grad, len(list(teacher.parameters()))
        (False, 0)
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        weights: str | None = None,
        layers: Sequence[str] = (),
        embedding: bool = False,
        convert: InputConversion | None = None,
        classes: ClassMap | None = None,
        backend: Backend = "fast",
        precision: Precision | None = None,
        stream: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(model, FrozenTeacher):
            raise UserError("this teacher is a FrozenTeacher already: give the network in it, its model")
        model = unwrapped(model)
        if (layers or embedding) and is_graph(model):
            raise UserError(
                f"{type(model).__name__} is a captured graph, whose layers can't be read: choose a method that reads "
                "logits, or build the network by its code"
            )
        self.as_built = weights is None
        self.told_untrained = False
        if weights is not None:
            load_weights(model, weights)
        elif callable(load_initial := getattr(model, "_load_initial", None)):  # of a module of ours
            load_initial()
        self.__dict__["model"] = _frozen(model)  # past nn.Module's registration, on purpose
        self._tap = FeatureTap(model, layers, embedding)
        self.convert = convert
        self.classes = classes
        # conversions inside the network, which learn from the data module how images are normalised
        inside = [m for m in model.modules() if isinstance(m, InputConversion) and m.given is None]
        self.conversions = nn.ModuleList(inside) if inside else None
        self._backend: Backend = backend
        self.precision = precision or half_precision(model)
        self.stream = stream
        self.fault: str | None = None
        self._tried = self._in_place = False
        self._run: Callable[[Input], Outputs] | None = None

    @staticmethod
    def of(teacher: nn.Module) -> FrozenTeacher:
        """A teacher as it is, and a network as a teacher."""
        return teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher)

    @property
    def backend(self) -> Backend:
        """How the network is run; the next call prepares it again after a change."""
        return self._backend

    @backend.setter
    def backend(self, backend: Backend) -> None:
        self._backend, self._run = backend, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.model._apply(self._in_own_precision(fn), recurse)  # type: ignore[no-untyped-call]
        self._run = None
        return self

    def _in_own_precision(self, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """What moves a tensor as ``fn`` does, and leaves its precision if the teacher was given one."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if self.precision is None or result.dtype == tensor.dtype else tensor.to(result.device)

        return moved

    @property
    def members(self) -> tuple[FrozenTeacher, ...]:
        """The single teachers that answer."""
        return (self,)

    def configured(
        self,
        weights: str | None = None,
        input: InputSpec | Literal["pretrained"] | None = None,
        data_input: InputSpec | None = None,
        classes: Sequence[int] | None = None,
        backend: Backend | None = None,
        precision: Precision | None = None,
    ) -> FrozenTeacher:
        """This teacher with other settings; ``None`` leaves each as it is.

        Args:
            weights: as the argument of the class.
            input: the format that the network was trained on.
            data_input: the format of the images; ``None`` if it is not known yet.
            classes: as the argument of :class:`~lightning_biaskd.ClassMap`.
            backend: as the argument of the class.
            precision: as the argument of the class.
        """
        teacher = FrozenTeacher(
            self.model,
            weights,
            convert=conversion(self.model, input, data_input) or self.convert,
            classes=self.classes if classes is None else ClassMap(classes),
            backend=backend or self.backend,
            precision=precision or self.precision,
            stream=self.stream,
        )
        teacher.as_built = self.as_built and weights is None
        return teacher

    def reading(self, layers: Sequence[str], embedding: bool) -> FrozenTeacher:
        """This teacher with outputs that hold the features of ``layers`` and, if asked, the embedding."""
        if tuple(layers) == self._tap.layers and embedding == self._tap.embedding:
            return self
        how = self.convert, self.classes, self.backend, self.precision, self.stream
        teacher = FrozenTeacher(self.model, None, layers, embedding, *how)
        teacher.as_built = self.as_built
        return teacher

    @torch.no_grad()
    def forward(self, image: Input) -> Outputs:
        """The network's outputs for a batch of images (B, …), or of named tensors, without a graph."""
        outputs = self.queue(image)
        self.join(one_of(image).device)
        return outputs

    @torch.no_grad()
    def queue(self, image: Input) -> Outputs:
        """The outputs of ``forward``, which may still be computed on a stream of their own until :meth:`join`."""
        if self.stream and one_of(image).is_cuda:
            with on_side_stream(one_of(image).device):
                return self._outputs_of(image)
        return self._outputs_of(image)

    def join(self, device: torch.device) -> None:
        """Makes what is queued from now on wait for outputs that are computed on a stream of their own."""
        if self.stream and device.type == "cuda":
            join_side_stream(device)

    def _outputs_of(self, image: Input) -> Outputs:
        image = image if self.convert is None else self.convert(image)
        if self._run is None:
            self._prepare(image)
        outputs = self._run(image)  # type: ignore[misc]
        return outputs if self.classes is None else self.classes.outputs(outputs)

    def _prepare(self, image: Input) -> None:
        if not self._tried:
            own = own_dtype(self.model)
            suited = image if own is None else converted(image, own)
            self.fault, self._in_place = tried(self._tap, plain(self._tap), suited)
            self._tried = True
        backend = self.backend if self.fault is None else "plain"  # what is prepared is compared with the network
        run = accelerate(self._tap, copied(image), backend, self.precision)
        self._run = partial(_on_copy, run) if self._in_place else run

    def fingerprint(self) -> str:
        """Identifies the outputs: layers, weights and precision, and what is done to images and classes."""
        classes = None if self.classes is None else self.classes.index
        state = self.model.state_dict()
        fixed = {name: buffer for name, buffer in self.model.named_buffers() if name not in state}
        given = repr(self.model), list(state), list(fixed), repr(self.convert), self.precision
        return fingerprint(*given, classes, *state.values(), *fixed.values(), *graph_constants(self.model))

    def extra_repr(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        return f"{type(self.model).__name__}, {count:,} frozen parameters"


def _on_copy(run: Callable[[Input], Outputs], image: Input) -> Outputs:
    return run(copied(image))


def _frozen(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    _evaluate(model)
    return model


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:  # an exported program stays in the mode in which it was captured
        model.training = False
        for child in model.children():
            _evaluate(child)
