"""Distributions and divergences of logits in lists, for the slow references."""

import math


def softmax(values):
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kd(student, teacher, y, tau=4.0):
    return tau**2 * kl(softmax([z / tau for z in teacher]), softmax([z / tau for z in student]))


def cross_entropy(p, q):
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
