"""Every exported distiller with the arguments that it is tested with, and an independent slow reference."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lightning_biaskd import DKD, KD, Distiller, WeightedSum


class Setting(NamedTuple):
    """How one distiller is tested.

    ``reference(s, t, y)`` is the loss of one sample, ``batch_reference(S, T, Y)`` the mean loss of a batch, for methods
    that have no other; one of them is given. ``lacks`` names the properties of `properties.py` that do not hold, each
    with the reason, as ``{property: why}``; a test fails if one of them does hold.
    """

    distiller: Distiller
    reference: Callable[..., float] | None = None
    lacks: Mapping[str, str] = {}
    batch_reference: Callable[..., float] | None = None


def softmax(values):
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kd(student, teacher, y, tau=4.0):
    return tau**2 * kl(softmax([z / tau for z in teacher]), softmax([z / tau for z in student]))


def dkd(student, teacher, y, alpha=1.0, beta=8.0, tau=4.0):
    p, q = softmax([z / tau for z in teacher]), softmax([z / tau for z in student])
    pair = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
    rest_p = [v / (1 - p[y]) for i, v in enumerate(p) if i != y]
    rest_q = [v / (1 - q[y]) for i, v in enumerate(q) if i != y]
    return tau**2 * (alpha * pair + beta * kl(rest_p, rest_q))


SETTINGS = {
    "KD": Setting(KD(), kd),
    "DKD": Setting(DKD(), dkd),
    "WeightedSum": Setting(
        WeightedSum([(KD(2.0), 0.5), (DKD(beta=2.0), 3.0)]),
        lambda s, t, y: 0.5 * kd(s, t, y, tau=2.0) + 3.0 * dkd(s, t, y, beta=2.0),
    ),
}
