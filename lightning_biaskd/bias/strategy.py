"""The paper's strategy, around any distillation method."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor

from lightning_biaskd.bias.each_teacher import corrected_singly, without_wrong_teachers
from lightning_biaskd.bias.loss import BiasLoss
from lightning_biaskd.bias.rectify import CORRECTIONS, ETA, Mode, Space, check_revision, rectify_logits
from lightning_biaskd.bias.rows import Rows, row_losses, rows_of
from lightning_biaskd.bias.trusting import LabelTrust, Trust, Trusting
from lightning_biaskd.distiller import Distiller
from lightning_biaskd.distributed.ranks import world_size
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import Outputs

Normalize = Literal["group", "batch"]
Balance = Literal["complement", "ramp", "equal"]
Features = Literal["drop", "keep"]


class BiasStrategy(Trusting):
    r"""Elimination, rectification and dynamic learning around any distiller.

    Zhang, Gao, Liu, Cheng, Zhang, Chen, *Can Students Beyond The Teacher? Distilling Knowledge from Teacher's Bias*,
    AAAI 2025, arXiv 2412.09874. With :math:`\ell_i` the distiller's loss of a sample, taken on rectified teacher
    logits where the teacher is wrong,

    .. math:: L = a \sum_{i\ \mathrm{right}} \frac{\ell_i}{n_r} + b \sum_{i\ \mathrm{wrong}} \frac{\ell_i}{n_w}

    * ``balance``: ``"complement"`` (paper) is :math:`(a, b) = (1 - \gamma, \gamma)`, ``"ramp"`` is
      :math:`(1, \gamma)`, and ``"equal"`` is (1, 1), whatever γ.
    * ``normalize``: ``"group"`` (paper) divides by the number of right and of wrong samples, ``"batch"`` divides both
      by the size of the batch. These numbers are those of the global batch: under DDP they are summed over the ranks,
      so that N processes train as one on the joined batch. Where a batch holds several views of an image, each counts
      as a sample, as the teacher may be right on one and wrong on another.

    A group without samples adds exactly zero. γ changes during training: the
    :class:`~lightning_biaskd.callbacks.DynamicWeights` callback does it in a Trainer, and ``gamma.fill_(cosine(t))``
    in another loop. If a method reads features, nothing can be rectified: its wrong samples are dropped, and γ does not
    scale its right ones. A method that ignores the teacher keeps all samples, with equal weights. In a
    :class:`~lightning_biaskd.WeightedSum` each part is handled separately.

    The defaults lost least in our measurements, over strong, weak and unrelated teachers; the paper's form is
    :meth:`paper`.

    Args:
        mode: how wrong answers are corrected, see :func:`~lightning_biaskd.bias.rectify`; ``"none"`` distils the
            bias unchanged, ``"drop"`` eliminates it (:math:`b = 0`).
        normalize: ``"group"`` or ``"batch"``.
        balance: ``"complement"``, ``"ramp"`` or ``"equal"``.
        space: ``"probs"`` or ``"logits"``, see :func:`~lightning_biaskd.bias.rectify_logits`.
        features: ``"drop"`` eliminates the wrong samples of methods that read features, ``"keep"`` keeps them, as if
            there were no strategy.
        sync: sum the counts over the ranks, and let pairwise methods compare the samples of all. With ``False`` each
            rank counts its own samples, which is another method; running accuracies are then those of rank 0.
        trust: multiplies the loss of each sample by the trust in the teacher on it: ``"student"``, ``"wsld"`` or
            ``"bounded"`` compare both networks on the sample, see :mod:`lightning_biaskd.bias.trust`; ``"run"`` and
            ``"class"`` compare their running accuracies, see
            :class:`~lightning_biaskd.bias.running_trust.RunningTrust`; ``None`` is 1 everywhere.
        label_trust: share :math:`c_i` of each correction that is made, because the label may be wrong and the teacher
            right. The student decides: ``"student"`` uses its preference for the label on the sample, see
            :func:`~lightning_biaskd.bias.trust.label`; ``"run"`` compares how often it recently agreed with the label
            and with the teacher where the two differ; ``None`` makes every correction in full. Without effect where no
            logits are corrected: in modes ``"none"`` and ``"drop"``, and on methods that read features or no teacher.
        discount: d in [0, 1], the largest share of its cross-entropy that a label loses, if the teacher contradicts it,
            the teacher is trusted and the label is not. With trust :math:`t_i` in the teacher, the cross-entropy of
            such a sample weighs :math:`w_{ce}\,(1 - d\,t_i (1 - c_i))`. Without effect where ``label_trust`` has none.
        refund: give the weight that the teacher loses on a sample back to its cross-entropy. With :math:`a_i` the share
            that elimination, γ and trust leave to a sample (``trust`` of :class:`BiasLoss`), the step's loss is the
            mean of :math:`(w_{ce} + w_{kd}(1 - a_i))\,\mathrm{CE}_i + w_{kd}\, a_i \ell_i`. ``normalize="batch"`` only.
        eta: η of mode ``"revise"``, see :func:`~lightning_biaskd.bias.rectify`.
        lift_right: raise the label of right answers too, as MFT does. Mode ``"revise"`` only.
        per_teacher: correct or drop the answer of each teacher of an :class:`~lightning_biaskd.EnsembleTeacher` before
            their mean, not the mean's. A sample is still right or wrong by the mean of what wasn't dropped.

    Attributes:
        gamma: buffer, γ in [0, 1]; 0 at first. Not in the state dict: it is a function of progress alone.

    Raises:
        UserError: an argument is not one of the listed words.

    Example:
        >>> from lightning_biaskd.distillers import KD
        >>> student = Outputs(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        >>> teacher = Outputs(torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
        >>> bias = BiasStrategy.paper("swap")
        >>> _ = bias.gamma.fill_(0.5)
        >>> loss = bias(KD(temperature=1.0), student, teacher, torch.tensor([0, 1]))  # the second answer is wrong
        >>> [round(x.item(), 4) for x in loss[:4]]
        [0.4479, 0.0671, 0.8287, 0.5]
    """

    gamma: Tensor

    def __init__(
        self,
        mode: Mode = "swap",
        normalize: Normalize = "batch",
        balance: Balance = "equal",
        space: Space = "probs",
        features: Features = "drop",
        sync: bool = True,
        trust: Trust | None = "run",
        refund: bool = False,
        eta: float = ETA,
        lift_right: bool = False,
        label_trust: LabelTrust | None = "run",
        per_teacher: bool = False,
        discount: float = 0.5,
    ) -> None:
        super().__init__(trust, label_trust if mode in CORRECTIONS else None, discount)
        for name, value, words in (
            ("mode", mode, get_args(Mode)),
            ("normalize", normalize, get_args(Normalize)),
            ("balance", balance, get_args(Balance)),
            ("space", space, get_args(Space)),
            ("features", features, get_args(Features)),
            ("trust", trust, (*get_args(Trust), None)),
            ("label_trust", label_trust, (*get_args(LabelTrust), None)),
        ):
            if value not in words:
                raise UserError(f"unknown {name} {value!r}: choose {', '.join(map(str, words))}")
        if refund and normalize != "batch":
            raise UserError("refund needs normalize='batch': with a group's mean, samples have no shares")
        if per_teacher and mode == "none":
            raise UserError("per_teacher is about whose answers are corrected, and mode 'none' corrects nothing")
        check_revision(mode, space, eta, lift_right)
        self.mode: Mode = mode
        self.normalize = normalize
        self.balance = balance
        self.space = space
        self.features = features
        self.sync = sync
        self.refund = refund
        self.eta = eta
        self.lift_right = lift_right
        self.per_teacher = per_teacher
        self.register_buffer("gamma", torch.tensor(0.0), persistent=False)

    @classmethod
    def paper(cls, mode: Mode = "blend", space: Space = "probs") -> BiasStrategy:
        """The strategy as the paper publishes it: γ moves the weight from right to corrected samples, without trust.

        Args:
            mode: ``"blend"`` or ``"swap"``, the paper's corrections, or another.
            space: ``"probs"``, or ``"logits"`` as in its scripts.
        """
        return cls(mode, "group", "complement", space, trust=None, label_trust=None)

    @property
    def uses_gamma(self) -> bool:
        """Whether γ has an effect."""
        return self.balance != "equal"

    def forward(
        self,
        distiller: Distiller,
        student: Outputs,
        teacher: Outputs,
        target: Tensor,
        ignore_index: int | None = None,
    ) -> BiasLoss:
        """Weighs the distiller's losses.

        Args:
            distiller: any method.
            student: the student's outputs, with logits (B, C) or (B, C, …).
            teacher: the teacher's outputs, not rectified.
            target: (B,) or (B, …) labels. Each is a sample of its own: an image, a pixel or a token.
            ignore_index: the label of samples that count nowhere; ``None`` if there is none.

        Returns:
            The loss and its parts.

        Raises:
            UserError: outputs and labels that don't fit, or a method that can't work on maps.
        """
        rows = rows_of(student, teacher, target, ignore_index)
        if self.per_teacher and self.mode == "drop":
            rows = without_wrong_teachers(rows)
        right, wrong = rows.split()
        ranks = world_size() if self.sync and self.training else 1
        self.build(rows.student.logits.shape[1])
        n_right, n_wrong = self.count(right, wrong, rows, ranks)
        size = n_right + n_wrong if rows.known is None else (n_right + n_wrong).clamp_min(1)
        logits = rows.student.logits, rows.teacher.logits
        trust = self.trust_in(*logits, rows.target)
        corrects = any(self.corrects(term) for term, _ in distiller.terms())
        amount = self.label_trust_in(*logits, rows.target) if corrects else None
        total = right_part = rectified_part = torch.zeros_like(self.gamma)
        for term, weight in distiller.terms():
            used = self.uses_wrong(term)
            corrected, keep = self._corrected(term, rows, amount), rows.known if used else right
            losses = row_losses(term, rows, corrected, keep, joined=ranks > 1)
            losses = losses if trust is None or term.reads == "nothing" else losses * trust
            masked = not used and len(rows.shape) > 1 and term.dense == "images"  # wrong pixels left out of features
            by_batch = self.normalize == "batch" or (used and term.reads != "logits") or masked
            scaled = losses * (ranks * weight)
            easy = torch.where(right | wrong if masked else right, scaled, 0).sum() / (
                size if by_batch else n_right.clamp_min(1)
            )
            hard = torch.where(wrong & used, scaled, 0).sum() / (size if by_batch else n_wrong.clamp_min(1))
            a, b = self._weights(term)
            total = total + a * easy + b * hard
            right_part, rectified_part = right_part + easy, rectified_part + hard
        shares = self.shares(distiller, right, trust).detach().view(rows.shape)
        known = None if rows.known is None else rows.known.view(rows.shape)
        unit = ranks / size.to(total.dtype)
        parts = right_part.detach(), rectified_part.detach(), n_wrong / size
        trusted = self.label_trust_and_discount(wrong, trust, amount, ranks / n_wrong.clamp_min(1), rows.shape)
        return BiasLoss(total, *parts, shares, known, unit, *trusted)

    def shares(self, distiller: Distiller, right: Tensor, trust: Tensor | None = None) -> Tensor:
        """Share (B,) of its weight that the teacher keeps on each sample, as mean over the methods of a sum.

        Args:
            distiller: any method.
            right: (B,) bool, where the teacher is right.
            trust: (B,), ``None`` for 1.
        """
        shares = []
        for term, _ in distiller.terms():
            a, b = self._weights(term)
            share = torch.where(right, a, b if self.uses_wrong(term) else 0)
            shares.append(share if trust is None or term.reads == "nothing" else share * trust)
        return torch.stack(shares).mean(0)

    def _weights(self, term: Distiller) -> tuple[Tensor, Tensor]:
        """Weights of a method's right and wrong samples by dynamic learning."""
        one = torch.ones_like(self.gamma)
        if term.reads != "logits":
            return one, one
        return (1 - self.gamma if self.balance == "complement" else one), one if self.balance == "equal" else self.gamma

    def uses_wrong(self, term: Distiller) -> bool:
        """Whether the wrong samples of a method are used, corrected or as they are; otherwise they are dropped."""
        if term.reads == "logits":
            return self.mode != "drop"
        return term.reads == "nothing" or self.features == "keep"

    def corrects(self, term: Distiller) -> bool:
        """Whether the teacher's wrong logits are corrected before a method gets them."""
        return term.reads == "logits" and self.mode in CORRECTIONS

    def _corrected(self, term: Distiller, rows: Rows, amount: Tensor | None) -> Tensor | None:
        """What a method gets in place of the teacher's logits; ``None`` for those that it gave."""
        if not self.corrects(term):
            return None
        if not self.per_teacher:
            return self.rectified(term, rows.teacher.logits, rows.target, amount)

        def correct(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
            amount = self.label_trust_in(student, teacher, target)
            return cast("Tensor", self.rectified(term, teacher, target, amount))

        return corrected_singly(rows, correct)

    def rectified(self, term: Distiller, logits: Tensor, target: Tensor, amount: Tensor | None = None) -> Tensor | None:
        """The teacher's logits as a method gets them; ``None`` if the strategy corrects nothing for it.

        Args:
            term: a single method.
            logits: (B, C) of the teacher.
            target: (B,) labels.
            amount: (B,) how much of each correction is made; ``None`` for all of it.
        """
        if not self.corrects(term):
            return None
        how = self.mode, term.temperature, self.space, self.eta, self.lift_right
        return rectify_logits(logits, target, *how, amount)

    def logged(self, loss: BiasLoss) -> dict[str, Tensor]:
        """The scalars that a training step logs."""
        logged = {
            "train/loss_right": loss.right,
            "train/loss_rectified": loss.rectified,
            "bias/wrong_rate": loss.wrong_rate,
        }
        if self.uses_gamma:
            logged["bias/gamma"] = self.gamma
        if self.trust is not None:
            logged["bias/trust"] = loss.mean_trust()
        if loss.label_trust is not None:
            logged["bias/label_trust"] = loss.label_trust
        return logged

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name in ("mode", "normalize", "balance", "space", "features")}
        off = {"trust": None, "label_trust": None, "refund": False, "eta": ETA, "lift_right": False}
        off |= {"per_teacher": False, "discount": 0.5}
        shown |= {name: value for name in off if (value := getattr(self, name)) != off[name]}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
