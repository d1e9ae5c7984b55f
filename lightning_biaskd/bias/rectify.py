"""Part 3 of the paper's method: correcting a wrong answer toward its label."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_biaskd.bias.partition import partition
from lightning_biaskd.errors import UserError
from lightning_biaskd.networks.outputs import at_least_float32

Mode = Literal["swap", "blend", "onehot", "revise", "none", "drop"]
Space = Literal["probs", "logits"]
CORRECTIONS: tuple[Mode, ...] = ("swap", "blend", "onehot", "revise")
"""The modes that change a wrong answer; ``"none"`` keeps it and ``"drop"`` leaves its sample out."""

ETA = 0.8
"""The default η of Label Revision (arXiv 2404.03693): how far it trusts the teacher."""
_SINGULAR = 1e-6


def _correct(v_y: Tensor, v_top: Tensor, mode: Mode, eta: float) -> tuple[Tensor, Tensor, Tensor | float]:
    """The arithmetic of every mode: the new values of the label and the top class, and the factor on other classes."""
    if mode == "swap":
        return v_top, v_y, 1.0
    if mode == "blend":
        s = v_y + v_top
        d = 1 + s
        d = torch.where(d.abs() < _SINGULAR, torch.copysign(torch.full_like(d, _SINGULAR), d), d)
        return s * (1 + v_y) / d, s * v_top / d, 1.0
    if mode == "onehot":
        return (v_y + 1) / 2, v_top / 2, 0.5
    if mode == "revise":
        beta = eta / (v_top - v_y + 1)
        return beta * v_y + 1 - beta, beta * v_top, beta
    if mode == "none":
        return v_y, v_top, 1.0
    raise UserError(f"mode {mode!r} does not rectify: choose swap, blend, onehot, revise or none")


def _lift(p_y: Tensor, rest: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The new value of a right row's label, and the factor on the other classes, whose sum is ``rest``."""
    factor = (1 - (1 - eta) / rest.clamp_min(torch.finfo(rest.dtype).tiny)).clamp_min(0)
    return (p_y + (1 - eta)).clamp_max(1), factor


def check_revision(mode: Mode, space: Space, eta: float, lift_right: bool) -> None:
    """Refuses arguments of Label Revision that are out of range or have no effect.

    Raises:
        UserError: an argument is out of range or has no effect.
    """
    if not 0 < eta <= 1:
        raise UserError(f"eta must be above 0 and at most 1, got {eta}")
    if mode != "revise" and (eta != ETA or lift_right):
        raise UserError(f"eta and lift_right belong to mode 'revise' and have no effect on {mode!r}: leave them out")
    if lift_right and space == "logits":
        raise UserError("lift_right raises a probability: set space to probs")


def _moved(
    v_y: Tensor, v_top: Tensor, mode: Mode, eta: float, amount: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | float]:
    """What :func:`_correct` gives, of which only an amount (B,) is done."""
    new_y, new_top, others = _correct(v_y, v_top, mode, eta)
    if amount is None:
        return new_y, new_top, others
    c = amount.to(v_y.dtype).unsqueeze(1)
    return torch.lerp(v_y, new_y, c), torch.lerp(v_top, new_top, c), 1 + c * (others - 1)


def _rectify(
    values: Tensor, target: Tensor, top: Tensor, right: Tensor, mode: Mode, eta: float, amount: Tensor | None
) -> Tensor:
    y = target.unsqueeze(1)
    new_y, new_top, others = _moved(values.gather(1, y), values.gather(1, top), mode, eta, amount)
    return torch.where(right.unsqueeze(1), values, (values * others).scatter(1, top, new_top).scatter(1, y, new_y))


def rectify(
    probs: Tensor,
    target: Tensor,
    mode: Mode = "blend",
    eta: float = ETA,
    lift_right: bool = False,
    amount: Tensor | None = None,
) -> Tensor:
    r"""Corrects the wrong rows of a batch of distributions. Right rows are unchanged, unless lifted.

    With :math:`\hat y` the teacher's first class and :math:`s = p_y + p_{\hat y}`:

    ========== ============================== ============================== ========================
    mode       :math:`p'_y`                   :math:`p'_{\hat y}`            other classes
    ========== ============================== ============================== ========================
    ``swap``   :math:`p_{\hat y}`             :math:`p_y`                    unchanged
    ``blend``  :math:`s(1 + p_y)/(1 + s)`     :math:`s\,p_{\hat y}/(1 + s)`  unchanged
    ``onehot`` :math:`(p_y + 1)/2`            :math:`p_{\hat y}/2`           halved
    ``revise`` :math:`\beta p_y + 1 - \beta`  :math:`\beta p_{\hat y}`       times :math:`\beta`
    ``none``   :math:`p_y`                    :math:`p_{\hat y}`             unchanged
    ========== ============================== ============================== ========================

    where :math:`\beta = \eta / (p_{\hat y} - p_y + 1)`. ``swap`` and ``blend`` are figures 3(b) and 3(c) of the paper
    (arXiv 2412.09874), ``onehot`` is its scripts' second variant, ``revise`` is Label Revision (arXiv 2404.03693).

    In full, ``swap``, ``onehot`` and ``revise`` always put the label on top. ``blend`` does not: where a third class is
    nearly as likely as the first and the label very unlikely, the label stays below the third class.

    Args:
        probs: (B, C) distributions.
        target: (B,) labels.
        mode: how to correct.
        eta: :math:`\eta` of ``revise``, in (0, 1]: how far it trusts the teacher.
        lift_right: raise the label of right rows to :math:`\min(1, p_y + 1 - \eta)` and scale the other classes to the
            remaining mass. With ``revise`` this is the correction of MFT (arXiv 2506.15702).
        amount: (B,) in [0, 1], :math:`c_i`: a wrong row becomes :math:`(1 - c_i)\,p + c_i\,p'`; ``None`` is 1 on every
            row.

    Returns:
        (B, C) distributions.

    Raises:
        UserError: an unknown mode, or ``drop``, which leaves nothing to rectify; ``eta`` out of range; ``eta`` or
            ``lift_right`` with a mode other than ``revise``.

    Example:
        >>> p = torch.tensor([[0.50, 0.30, 0.15, 0.05]])
        >>> rectify(p, torch.tensor([2]), "swap")
        tensor([[0.1500, 0.3000, 0.5000, 0.0500]])
        >>> rectify(p, torch.tensor([2]), "blend")
        tensor([[0.1970, 0.3000, 0.4530, 0.0500]])
        >>> rectify(p, torch.tensor([2]), "swap", amount=torch.tensor([0.2]))
        tensor([[0.4300, 0.3000, 0.2200, 0.0500]])
    """
    check_revision(mode, "probs", eta, lift_right)
    right = partition(probs, target)
    rectified = _rectify(probs, target, probs.argmax(1, keepdim=True), right, mode, eta, amount)
    if not lift_right:
        return rectified
    p_y = probs.gather(1, target.unsqueeze(1))
    new_y, factor = _lift(p_y, 1 - p_y, eta)
    return torch.where(right.unsqueeze(1), (probs * factor).scatter(1, target.unsqueeze(1), new_y), rectified)


def rectify_logits(
    logits: Tensor,
    target: Tensor,
    mode: Mode = "blend",
    temperature: float = 4.0,
    space: Space = "probs",
    eta: float = ETA,
    lift_right: bool = False,
    amount: Tensor | None = None,
) -> Tensor:
    r"""Corrects the wrong rows of teacher logits, so that any distiller that reads logits can use them.

    In ``space="probs"`` the tempered probabilities :math:`p = \mathrm{softmax}(z/\tau)` are rectified and become
    logits again:

    .. math:: z'_c = \tau\Big(\log p'_c + \log\textstyle\sum_k e^{z_k/\tau}\Big)

    so that :math:`\mathrm{softmax}(z'/\tau) = p'`. The constant of the row is chosen so that untouched logits
    stay unchanged: ``swap`` exchanges two logits and nothing else. ``space="logits"`` applies the same
    arithmetic to raw logits, as the paper's released scripts do; near their singularity
    (:math:`z_y + z_{\hat y} = -1` in ``blend``) the denominator is kept away from zero, so the result is finite.

    Args:
        logits: (B, C) teacher logits.
        target: (B,) labels.
        mode: as in :func:`rectify`.
        temperature: τ, at which student and teacher are compared.
        space: ``"probs"`` (the paper's figure 3) or ``"logits"`` (its scripts).
        eta: as in :func:`rectify`.
        lift_right: as in :func:`rectify`, at the temperature; ``space="probs"`` only.
        amount: as in :func:`rectify`, of tempered probabilities or of logits, as the space says.

    Returns:
        (B, C) logits, in float32 at least; right rows unchanged, unless lifted.

    Raises:
        UserError: unknown mode or space; ``eta`` or ``lift_right`` as in :func:`rectify`.

    Example:
        >>> z = torch.tensor([[3.0, 1.0, 2.0]])
        >>> rectify_logits(z, torch.tensor([1]), "swap")
        tensor([[1., 3., 2.]])
    """
    check_revision(mode, space, eta, lift_right)
    z = at_least_float32(logits)
    y, top, right = target.unsqueeze(1), z.argmax(1, keepdim=True), partition(z, target)
    if space == "logits":
        return _rectify(z, target, top, right, mode, eta, amount)
    if space != "probs":
        raise UserError(f"unknown space {space!r}: choose probs or logits")
    log_p = F.log_softmax(z / temperature, dim=1)
    p_y, p_top, others = _moved(log_p.gather(1, y).exp(), log_p.gather(1, top).exp(), mode, eta, amount)
    scaled = z + temperature * (math.log(others) if isinstance(others, float) else others.log())
    shift = z.gather(1, top) - temperature * log_p.gather(1, top)
    floor = torch.finfo(z.dtype).tiny

    def back(p: Tensor) -> Tensor:
        return temperature * p.clamp_min(floor).log() + shift

    kept = z
    if lift_right:
        log_y = log_p.gather(1, y)
        lifted, factor = _lift(log_y.exp(), -log_y.expm1(), eta)
        kept = (z + temperature * factor.clamp_min(floor).log()).scatter(1, y, back(lifted))
    return torch.where(right.unsqueeze(1), kept, scaled.scatter(1, top, back(p_top)).scatter(1, y, back(p_y)))
