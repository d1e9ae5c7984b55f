"""The settings of ITRD, MGD, NORM and VkD; features are made of the logits as in projector_settings."""

import math

import torch
from logit_settings import drawn
from projector_settings import (
    AT_ITS_START,
    convolved,
    each,
    flat,
    mean,
    normed,
    projected,
    read,
    relu,
    settled,
    squares,
    unit,
)
from properties import Setting

from lightning_biaskd.distillers import ITRD, MGD, NORM, VkD


def averages(name, row):
    return [mean(flat(plane)) for plane in read(name, row)]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def mgd(student, teacher, y, masked=0.15):
    align, generate = MASKED.connectors
    index = int(projected(torch.tensor([student], dtype=torch.float64)).index)
    x = convolved(read("-1", student), align[0])
    hidden = [bits / 2**24 < masked for bits in drawn(MASKED.draws, index, len(x))]
    x = [each([plane], lambda v, out=out: 0.0 if out else v)[0] for plane, out in zip(x, hidden, strict=True)]
    return sum(squares(convolved(relu(convolved(x, generate[0])), generate[2]), read("wide", teacher)))


def reflected(vectors, x):
    """The product of Householder reflections, the last one first; their vectors are columns below a 1."""
    for n in reversed(range(len(vectors[0]))):
        v = [0.0] * n + [1.0] + [row[n] for row in vectors[n + 1 :]]
        share = 2 * dot(v, x) / dot(v, v)
        x = [a - share * b for a, b in zip(x, v, strict=True)]
    return x


def vkd(student, teacher, y):
    (projection,) = ORTHOGONAL.connectors
    own, others = reflected(projection.vectors.tolist(), [*averages("-1", student), 0.0]), averages("wide", teacher)
    deviation = math.sqrt(mean([(v - mean(others)) ** 2 for v in others]) + 1e-5)
    gaps = [abs(a - (b - mean(others)) / deviation) for a, b in zip(own, others, strict=True)]
    return mean([gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps])


def itrd(students, teachers, labels, correlation_weight=2.0, mutual_weight=1.0, alpha=1.01):
    (linear,) = INFORMATION.connectors[0]
    own, others = ([averages("-1", row) for row in rows] for rows in (students, teachers))
    n = len(own)
    total = 0.0
    for weight, bias, t in zip(linear.weight.tolist(), linear.bias.tolist(), zip(*others, strict=True), strict=True):
        s = [dot(weight, e) + bias for e in own]
        a, b = ([(v - mean(x)) / math.sqrt(sum((u - mean(x)) ** 2 for u in x) / (n - 1)) for v in x] for x in (s, t))
        total += abs(dot(a, b) / n - 1) ** (2 * alpha)
    cosines = [[[dot(unit(a), unit(b)) for b in rows] for a in rows] for rows in (own, others)]
    joint = [[a * b for a, b in zip(*rows, strict=True)] for rows in zip(*cosines, strict=True)]
    mutual = 0.0
    for gram, sign in ((cosines[0], 1), (joint, -1)):
        trace = sum(gram[i][i] for i in range(n))
        mutual += sign * sum((v / trace) ** 2 for v in flat(gram))
    return correlation_weight * math.log2(total) + mutual_weight * mutual


def norm(student, teacher, y, parts=3):
    expanded = normed(convolved(read("-1", student), MATCHED.connectors[0][0]), MATCHED.connectors[0][1])
    t = read("wide", teacher)
    return sum(mean(squares(expanded[n * len(t) : (n + 1) * len(t)], t)) for n in range(parts))


def drawing(distiller):
    """With draws that no other test changes."""
    distiller.draws.seed.fill_(7)
    distiller.draws.set_epoch(3)
    return distiller


MASKED = drawing(settled(MGD(-1, "wide")))
ORTHOGONAL = settled(VkD(-1, "wide"))
INFORMATION = settled(ITRD())
MATCHED = settled(NORM(-1, "wide", parts=3))
MATCHED.connectors[1].requires_grad_(False)  # it is learned from the losses on the logits

CONNECTOR_SETTINGS = {
    "ITRD": Setting(
        INFORMATION,
        batch_reference=itrd,
        lacks={
            **AT_ITS_START,
            "gives_each_sample_a_loss_of_its_own": "correlations are over the batch",
        },
        outputs=projected,
    ),
    "MGD": Setting(MASKED, mgd, AT_ITS_START, outputs=projected),
    "NORM": Setting(MATCHED, norm, AT_ITS_START, outputs=projected),
    "VkD": Setting(ORTHOGONAL, vkd, AT_ITS_START, outputs=projected),
}
