r"""Part 4 of the paper's method: the weight γ of hard, rectified knowledge at training progress t.

Each schedule is a function of t in [0, 1], the share of training done, into [0, 1]. Any such callable can be used
instead.
"""

import math


def cosine(t: float) -> float:
    r""":math:`\gamma(t) = \sin^2(\pi t / 2)`, the paper's schedule, from easy to hard, slow at both ends.

    Example:
        >>> [round(cosine(t), 3) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.146, 0.5, 1.0]
    """
    return math.sin(math.pi * t / 2) ** 2


def reversed_cosine(t: float) -> float:
    r""":math:`\gamma(t) = \cos^2(\pi t / 2)`: from hard to easy, the control experiment for the order."""
    return math.cos(math.pi * t / 2) ** 2


def linear(t: float) -> float:
    r""":math:`\gamma(t) = t`."""
    return t


def step(t: float) -> float:
    r""":math:`\gamma(t) = [t \ge 1/2]`: easy knowledge alone, then hard knowledge."""
    return float(t >= 0.5)


def constant(t: float) -> float:
    r""":math:`\gamma(t) = 1`: no schedule. With ``balance="ramp"`` right and rectified weigh the same."""
    return 1.0
