"""One-for-all distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_biaskd.distiller import Dense, Distiller, Needs
from lightning_biaskd.errors import UserError, check_positive
from lightning_biaskd.features.base import Layer, as_map, feature_of, layer_names
from lightning_biaskd.features.connectors import BatchNorm2d, Connector, require_built, to_device_of
from lightning_biaskd.networks.outputs import Outputs, at_least_float32


def ofa_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, exponent: float, temperature: float
) -> Tensor:
    r"""The cross-entropy with an enhanced label of each sample; see :class:`OFA`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) labels.
        exponent: γ, positive.
        temperature: τ.

    Returns:
        (B,)

    Example:
        The teacher gives each of two classes 1/2; with γ = 2, the weights of label and other class are 1.5² - 1
        and 0.5²:

        >>> even, label = torch.zeros(1, 2), torch.tensor([0])
        >>> ofa_loss(even, even, label, exponent=2.0, temperature=1.0)  # 1.5 log 2
        tensor([1.0397])
    """
    p_t = F.softmax(at_least_float32(teacher_logits) / temperature, dim=1)
    is_label = torch.zeros_like(p_t).scatter(1, target.unsqueeze(1), 1.0)
    log_s = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    return -(((p_t + is_label) ** exponent - is_label) * log_s).sum(1)


class OFA(Distiller):
    r"""Hao et al., *One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation*.

    NeurIPS 2023, arXiv 2310.19444. With :math:`p^T, p^S` the distributions at τ, and :math:`p^k` those that learned
    exits give for intermediate maps of the student,

    .. math::
        \ell_i = \ell(p^S_i) + \sum_k \ell(p^k_i), \qquad
        \ell(p) = -\big((1 + p^T_{iy})^\gamma - 1\big) \log p_y - \sum_{c \neq y} (p^T_{ic})^\gamma \log p_c

    With γ = 1, :math:`\ell` is the cross-entropy with the teacher's distribution. A larger γ raises the weight of the
    label, the more the surer the teacher is of it, and lowers that of classes to which the teacher gives little.
    :math:`\ell` isn't zero at the teacher. Only logits are read of the teacher, so any two architectures fit.

    This is the authors' code (Hao840/OFAKD). In the paper, γ is on the label's factor alone; there :math:`\ell` also
    contains the cross-entropy with the label, which is the 1 that the code subtracts.

    An exit halves its map with separable convolutions until it is as small as the smallest of the listed layers, and
    classifies the average; the smallest gets a 1x1 convolution in their place. The authors put exits at all four stages
    of a convolutional student, ``layers=[-4, -3, -2, -1]``. For tokens they take attention blocks; here tokens are
    treated as a map. Their exits are as wide as the wider of both networks' embeddings. In training, BatchNorm takes
    its statistics from all samples of the process, unless the Trainer has ``sync_batchnorm=True``. Only the student's
    features pass through it, and none of an exit is deployed.

    The default γ of 1.5 is that of the authors' example for ImageNet. In their example for CIFAR-100 it is 1. τ is 1,
    and all parts and cross-entropy have weight 1.

    Args:
        exponent: γ, positive.
        temperature: τ.
        layers: the student's layers with an exit, by name or by stage; none by default.
        width: channels of an exit's last map; ``None`` for those of the last listed layer.

    Raises:
        UserError: the exponent is not positive, or the width is below 1; with exits, when called before ``build``, or
            on features that are neither maps nor tokens.
    """

    soft_labels = True

    def __init__(
        self,
        exponent: float = 1.5,
        temperature: float = 1.0,
        layers: Sequence[Layer] = (),
        width: int | None = None,
    ) -> None:
        super().__init__(temperature)
        check_positive(exponent=exponent)
        if width is not None and width < 1:
            raise UserError(f"width must be at least 1, got {width}")
        self.exponent = exponent
        self.width = width
        self.needs = Needs(layers=layer_names(layers))
        self.connectors = nn.ModuleList()

    @property
    def dense(self) -> Dense | None:
        """Each pixel or token is a sample of its own; exits have no logits for them."""
        return None if self.needs.layers else "rows"

    @property
    def builds(self) -> bool:
        """Whether there are exits."""
        return bool(self.needs.layers)

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Creates the exits."""
        maps = self._maps(student)
        if maps:
            width = self.width or maps[-1].shape[1]
            smallest = min(x.shape[2] for x in maps)
            exits = [_exit(x, smallest, width, student.logits.shape[1]) for x in maps]
            self.connectors = to_device_of(exits, maps[0])

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        loss = ofa_loss(student.logits, teacher.logits, target, self.exponent, self.temperature)
        if self.needs.layers:
            for leave, x in zip(require_built(self.connectors), self._maps(student), strict=True):
                loss = loss + ofa_loss(leave(x), teacher.logits, target, self.exponent, self.temperature)
        return loss

    def _maps(self, student: Outputs) -> list[Tensor]:
        return [as_map(feature_of(student, layer, "student")) for layer in self.needs.layers]

    def extra_repr(self) -> str:
        exits = f", layers={self.needs.layers}, width={self.width}" if self.needs.layers else ""
        return f"exponent={self.exponent}, {super().extra_repr()}{exits}"


def _exit(x: Tensor, smallest: int, width: int, classes: int) -> Connector:
    """Logits of a map, by halving it to the smallest size, averaging and classifying."""
    channels, halvings = x.shape[1], round(math.log2(x.shape[2] / smallest))
    sizes = [channels * 2**n for n in range(halvings)] + [width]
    layers: list[nn.Module] = [layer for n in range(halvings) for layer in _halving(sizes[n], sizes[n + 1])]
    layers = layers or [nn.Conv2d(channels, width, 1)]
    leave = Connector(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    for module in leave:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return leave


def _halving(into: int, out: int) -> list[nn.Module]:
    """Two separable convolutions, the first with stride 2."""
    layers: list[nn.Module] = []
    for stride, size in ((2, into), (1, out)):
        layers += [nn.Conv2d(into, into, 3, stride=stride, padding=1, groups=into, bias=False)]
        layers += [nn.Conv2d(into, size, 1, bias=False), BatchNorm2d(size), nn.ReLU()]
    return layers
