"""Distillation through a token, for students with two heads."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_biaskd.distiller import Dense, Distiller, Needs, Wrapper
from lightning_biaskd.distillers.hard import Hard
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import feature_of
from lightning_biaskd.networks.outputs import Outputs, with_logits
from lightning_biaskd.networks.tap import FeatureTap


class DistillationToken(Wrapper):
    r"""Touvron et al., *Training data-efficient image transformers & distillation through attention*, ICML 2021.

    arXiv 2012.12877 (DeiT). The student has two tokens, each with its head. The head of the class token learns the
    labels, and the head of the distillation token learns from the teacher:

    .. math::
        \ell_i = \ell^{\mathrm{inner}}_i(z^{\mathrm{dist}}, z^T), \qquad
        z^S = \begin{cases} z^{\mathrm{class}} & \text{in training} \\
        (z^{\mathrm{class}} + z^{\mathrm{dist}}) / 2 & \text{else} \end{cases}

    In training mode, :math:`z^S` are the logits of cross-entropy and of other methods in the same sum. In evaluation
    and deployment they are the network's own, in which timm and transformers average both heads. ``train/acc1`` is
    thus the accuracy of the class head, and ``trust`` and ``label_trust`` of a strategy compare that head with the
    teacher.

    The names of the heads are those of timm's ``deit_*_distilled``, ``pit_*_distilled``, LeViT and EfficientFormer.
    For ``DeiTForImageClassificationWithTeacher`` of transformers, they are ``cls_classifier`` and
    ``distillation_classifier``. Leave ``distilled_training`` of timm's networks at False.

    The inner method is hard-label distillation with the weight of cross-entropy by default, the paper's choice. Its
    soft variant is :class:`KD` at temperature 3, with weight 0.1 and cross-entropy at 0.9; the authors' code
    (facebookresearch/deit) also divides the soft loss by the number of classes.

    Args:
        distiller: the inner method, which reads logits; ``None`` for :class:`Hard`.
        head: the student's layer that gives the logits of the class token.
        token_head: the layer that gives the logits of the distillation token.

    Raises:
        UserError: one layer for both heads, or an inner method on features or a sum; before training, a layer that
            doesn't give (B, C), or a network that returns two logits in training.

    Example:
        >>> import torch
        >>> heads = {"head": torch.tensor([[2.0, 0.0]]), "head_dist": torch.tensor([[0.0, 0.0]])}
        >>> student, teacher = Outputs(torch.tensor([[1.0, 0.0]]), heads), Outputs(torch.tensor([[2.0, 0.0]]))
        >>> method = DistillationToken()
        >>> method(student, teacher, torch.tensor([0])), method.outputs_of(student).logits
        (tensor([0.6931]), tensor([[2., 0.]]))
        >>> method.eval().outputs_of(student).logits
        tensor([[1., 0.]])
    """

    def __init__(self, distiller: Distiller | None = None, head: str = "head", token_head: str = "head_dist") -> None:
        inner = Hard() if distiller is None else distiller
        if head == token_head:
            raise UserError(f"DistillationToken needs two heads, and got {head!r} for both: name two layers")
        if next(inner.terms())[0] is not inner:
            raise UserError("DistillationToken wraps one method: in a sum, wrap each part")
        if inner.reads == "features":
            raise UserError(
                f"DistillationToken wraps methods on logits, and {type(inner).__name__} reads features: put it "
                "beside DistillationToken in a WeightedSum"
            )
        super().__init__(inner)
        self.soft_labels = inner.soft_labels
        self.head = head
        self.token_head = token_head
        self.needs = self.needs | Needs(layers=(head, token_head))

    @property
    def dense(self) -> Dense | None:
        """Nothing: the heads classify images."""
        return None

    def build(self, student: Outputs, teacher: Outputs, num_samples: int | None = None) -> None:
        """Checks the heads, and builds the inner method for the one of the token."""
        for layer in (self.head, self.token_head):
            shape = feature_of(student, layer, "student").shape
            if shape != student.logits.shape:
                raise UserError(
                    f"DistillationToken needs two heads with logits {tuple(student.logits.shape)}, but layer {layer!r} "
                    f"gives {tuple(shape)}: name the student's heads by head and token_head"
                )
        super().build(self._of_token(student), teacher, num_samples)

    def outputs_of(self, student: Outputs) -> Outputs:
        """In training, the student's outputs with the logits of the class head; else its own outputs."""
        return with_logits(student, feature_of(student, self.head, "student")) if self.training else student

    def deployed(self, student: FeatureTap) -> nn.Module:
        """The student, which averages both heads."""
        if getattr(student.model, "distilled_training", False):
            raise UserError(
                f"{type(student.model).__name__} has distilled_training=True, with which it returns two logits: call "
                "set_distilled_training(False), as DistillationToken reads both heads itself"
            )
        return super().deployed(student)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, keep: Tensor | None = None) -> Tensor:
        losses: Tensor = self.distiller(self._of_token(student), teacher, target, keep)
        return losses

    def _of_token(self, student: Outputs) -> Outputs:
        return with_logits(student, feature_of(student, self.token_head, "student"))

    def extra_repr(self) -> str:
        return f"head={self.head!r}, token_head={self.token_head!r}"
