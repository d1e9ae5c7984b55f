"""The settings of DiffKD, ITRD, MGD, NORM and VkD; features are made of the logits as in projector_settings."""

import itertools
import math
from statistics import NormalDist

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

from lightning_biaskd.distillers import ITRD, MGD, NORM, DiffKD, VkD


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


def bottleneck(x, layers):
    inner = x
    for layer in layers:
        if isinstance(layer, torch.nn.ReLU):
            inner = relu(inner)
        else:
            inner = convolved(inner, layer) if isinstance(layer, torch.nn.Conv2d) else normed(inner, layer)
    return mixed_maps(1.0, x, 1.0, inner)


def mixed_maps(a, x, b, y):
    return [
        [[a * v + b * w for v, w in zip(*lines, strict=True)] for lines in zip(*planes, strict=True)]
        for planes in zip(x, y, strict=True)
    ]


def noise_in(x, step):
    network = DIFFUSED.connectors[1]
    x = [each([plane], lambda v, t=t: v + t)[0] for plane, t in zip(x, network.time.weight[step].tolist(), strict=True)]
    for layers in network.predict[:2]:
        x = bottleneck(x, layers)
    return normed(convolved(x, network.predict[2]), network.predict[3])


def diffkd(student, teacher, y, steps=2):
    transform, _, clean_share, project = DIFFUSED.connectors
    index = int(projected(torch.tensor([student], dtype=torch.float64)).index)
    x, t = convolved(read("-1", student), transform), read("wide", teacher)
    bits = drawn(DIFFUSED.draws, index, 1 + 2 * len(flat(t)))
    numbers = iter([NormalDist().inv_cdf((b + 0.5) / 2**24) for b in bits[1:]])
    start, noise = (each(t, lambda _: next(numbers)) for _ in range(2))
    alphas = list(itertools.accumulate((1 - 0.0001 - 0.0199 * n / 999 for n in range(1000)), float.__mul__))
    means = [mean(flat(plane)) for plane in bottleneck(x, clean_share.features)]
    pairs = zip(clean_share.classify.weight.tolist(), clean_share.classify.bias.tolist(), strict=True)
    logits = [dot(w, means) + b for w, b in pairs]
    share = 1 / (1 + math.exp(logits[1] - logits[0]))
    x = mixed_maps(share, x, 1 - share, start)
    for step in reversed(range(0, 500, 500 // steps)):
        found = noise_in(x, step)
        x = mixed_maps(1 / math.sqrt(alphas[step]), x, -math.sqrt((1 - alphas[step]) / alphas[step]), found)
        if step:
            before = alphas[step - 500 // steps]
            x = mixed_maps(math.sqrt(before), x, math.sqrt(1 - before), found)
    refined = normed(convolved(x, project[0]), project[1])
    step = bits[0] * 1000 // 2**24
    noisy = mixed_maps(math.sqrt(alphas[step]), t, math.sqrt(1 - alphas[step]), noise)
    return mean(squares(refined, t)) + mean(squares(noise_in(noisy, step), noise))


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
DIFFUSED = drawing(settled(DiffKD(-1, "wide", steps=2)))
DIFFUSED.connectors[2].features[4].bias.data.fill_(3.0)  # its one channel inside is not to die
DIFFUSED.connectors[2].features[1].bias.data.fill_(3.0)
ORTHOGONAL = settled(VkD(-1, "wide"))
INFORMATION = settled(ITRD())
MATCHED = settled(NORM(-1, "wide", parts=3))
MATCHED.connectors[1].requires_grad_(False)  # it is learned from the losses on the logits

CONNECTOR_SETTINGS = {
    "DiffKD": Setting(DIFFUSED, diffkd, AT_ITS_START, outputs=projected),
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
