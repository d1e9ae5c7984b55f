"""The teacher: present in the step, absent from everything that is trained, saved or sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_biaskd.files import fingerprint
from lightning_biaskd.networks.class_map import ClassMap
from lightning_biaskd.networks.inputs import InputConversion
from lightning_biaskd.networks.outputs import Outputs
from lightning_biaskd.networks.tap import FeatureTap
from lightning_biaskd.networks.weights import load_weights
from lightning_biaskd.teachers.backends import Backend, Precision, accelerate
from lightning_biaskd.teachers.stream import join_side_stream, on_side_stream

if TYPE_CHECKING:
    from typing_extensions import Self


class FrozenTeacher(nn.Module):
    """A network that answers and never changes.

    The network is kept out of the module tree, so that it has no parameters, buffers or state dict as far as anybody
    else can see: no optimizer updates it, no checkpoint holds it, DDP neither broadcasts nor reduces it, and
    SyncBatchNorm conversion passes it by. It still follows ``.to()``, ``.cuda()`` and ``.half()``, stays in eval mode
    through every ``.train()``, and its forward records no graph.

    Args:
        model: the trained network.
        weights: where to load its weights from (see :func:`~lightning_biaskd.networks.weights.load_weights`);
            ``None`` takes the network as it is.
        layers: layers whose output a feature distiller reads, see :class:`~lightning_biaskd.FeatureTap`.
        embedding: whether to hand out the classifier and what it reads. Its parameters are frozen, so that on the
            teacher's features it records no graph either.
        convert: makes of the images those that the network was trained to see, ``None`` where they are.
        classes: puts its logits in the order of the data set's classes, ``None`` where they are.
        backend: how it is run, see :func:`~lightning_biaskd.teachers.backends.accelerate`. The first call prepares
            it, from the weights that the network has then; if calls will be compiled, make one before.
        precision: of its weights and arithmetic, likewise.
        stream: on a GPU, let :meth:`queue` use a CUDA stream of its own, so that the network's work may overlap with
            the student's forward.

    Attributes:
        model: the network itself.
        as_built: whether the network came with its weights, as no ``weights`` were given.

    Raises:
        UserError: weights that don't fit the network, or an unknown layer.

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
        self.as_built = weights is None
        if weights is not None:
            load_weights(model, weights)
        self.__dict__["model"] = model.requires_grad_(False).eval()  # past nn.Module's registration, on purpose
        self._tap = FeatureTap(model, layers, embedding)
        self.convert = convert
        self.classes = classes
        self._backend: Backend = backend
        self.precision = precision
        self.stream = stream
        self._run: Callable[[Tensor], Outputs] | None = None

    @property
    def backend(self) -> Backend:
        """How the network is run; the next call prepares for another."""
        return self._backend

    @backend.setter
    def backend(self, backend: Backend) -> None:
        self._backend, self._run = backend, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.model._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._run = None
        return self

    def reading(self, layers: Sequence[str], embedding: bool) -> FrozenTeacher:
        """This teacher with outputs that hold the features of ``layers`` and, if asked, the embedding."""
        if tuple(layers) == self._tap.layers and embedding == self._tap.embedding:
            return self
        how = self.convert, self.classes, self.backend, self.precision, self.stream
        teacher = FrozenTeacher(self.model, None, layers, embedding, *how)
        teacher.as_built = self.as_built
        return teacher

    @torch.no_grad()
    def forward(self, image: Tensor) -> Outputs:
        """The network's outputs for a batch of images (B, …), without a graph."""
        outputs = self.queue(image)
        self.join(image.device)
        return outputs

    @torch.no_grad()
    def queue(self, image: Tensor) -> Outputs:
        """The outputs of ``forward``, which may still be computed on a stream of their own until :meth:`join`."""
        if self.stream and image.is_cuda:
            with on_side_stream(image.device):
                return self._outputs_of(image)
        return self._outputs_of(image)

    def join(self, device: torch.device) -> None:
        """Makes what is queued from now on wait for outputs that are computed on a stream of their own."""
        if self.stream and device.type == "cuda":
            join_side_stream(device)

    def _outputs_of(self, image: Tensor) -> Outputs:
        image = image if self.convert is None else self.convert(image)
        if self._run is None:
            self._run = accelerate(self._tap, image, self.backend, self.precision)
        outputs = self._run(image)
        return outputs if self.classes is None else self.classes.outputs(outputs)

    def fingerprint(self) -> str:
        """Names what it answers: its layers, weights and precision, and what is done to images and classes."""
        classes = None if self.classes is None else self.classes.index
        weights = self.model.state_dict()
        given = repr(self.model), list(weights), repr(self.convert), self.precision
        return fingerprint(*given, classes, *weights.values())

    def extra_repr(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        return f"{type(self.model).__name__}, {count:,} frozen parameters"
