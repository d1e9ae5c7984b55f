"""The settings of the methods that read features; features are made of the logits, row by row."""

import copy
import itertools
import math
import statistics

import numpy as np
import torch
from properties import Setting

from lightning_biaskd import Outputs
from lightning_biaskd.distillers import AT, CC, KDSVD, NST, PKD, PKT, RKD, SP, VID, FitNet

SHAPES = {"-3": (3, 6, 6), "-2": (4, 4, 4), "-1": (5, 2, 2), "wide": (6, 4, 4), "wide embedding": (7,)}


def feature(logits, shape):
    """At least 0, as after ReLU, and of full rank: (B, C) to (B, *shape)."""
    classes, size = torch.arange(1, logits.shape[1] + 1), torch.arange(1, math.prod(shape) + 1)
    waves = torch.sin(classes[:, None] * size.double()).to(logits.dtype)
    return (logits @ waves).abs().unflatten(1, shape)


def featured(logits):
    """Outputs with the features of a network."""
    maps = {name: feature(logits, shape) for name, shape in SHAPES.items()}
    return Outputs(logits, maps, maps["wide embedding"])


def built(distiller):
    """A copy with what it learns, made with a fixed seed and with statistics that are not those of the start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        distiller = copy.deepcopy(distiller)
        few = featured(torch.randn(4, 6, dtype=torch.float64))
        distiller.build(few, few)
        for name, buffer in distiller.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return distiller.eval()


def read(rows, name):
    """A feature as nested lists, of one row of logits or of several."""
    logits = torch.tensor(rows, dtype=torch.float64)
    return featured(logits).features[name].tolist() if logits.ndim == 2 else read([rows], name)[0]


def flat(nested):
    return [v for part in nested for v in flat(part)] if isinstance(nested, list) else [nested]


def scaled(row):
    length = math.hypot(*row)
    return [v / length for v in row]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean_square(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def huber(gap):
    return gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5


def at(student, teacher, y):
    total = 0.0
    for name in ("-3", "-2", "-1"):
        maps = []
        for channels in (read(student, name), read(teacher, name)):
            planes = [flat(plane) for plane in channels]
            maps.append(scaled([sum(v**2 for v in place) / len(planes) for place in zip(*planes, strict=True)]))
        total += mean_square(*maps)
    return total


def nst(student, teacher, y):
    total = 0.0
    for name in ("-3", "-2", "-1"):
        s, t = ([scaled(flat(plane)) for plane in read(rows, name)] for rows in (student, teacher))
        for a, b, sign in ((t, t, 1), (s, s, 1), (s, t, -2)):
            total += sign * sum(dot(x, z) ** 2 for x in a for z in b) / (len(a) * len(b))
    return total


def sp(students, teachers, labels):
    similar = []
    for rows in (students, teachers):
        features = [flat(f) for f in read(rows, "-1")]
        similar.append([scaled([dot(a, b) for b in features]) for a in features])
    return mean_square(flat(similar[0]), flat(similar[1]))


def pkd(students, teachers, labels):
    total = 0.0
    for name in ("-3", "-2", "-1"):
        channels = []
        for rows in (students, teachers):
            found = [[flat(plane) for plane in planes] for planes in read(rows, name)]
            for images in zip(*found, strict=True):  # the planes of one channel
                values = flat(list(images))
                mean, deviation = statistics.mean(values), statistics.stdev(values)
                channels.append([(v - mean) / (deviation + 1e-6) for v in values])
        half = len(channels) // 2
        total += mean_square(flat(channels[:half]), flat(channels[half:])) / 2
    return total


def rkd(students, teachers, labels, distance_weight=25.0, angle_weight=50.0):
    n = range(len(labels))
    relations = []
    for rows in (students, teachers):
        e = read(rows, "wide embedding")
        distances = [[math.dist(e[i], e[j]) for j in n] for i in n]
        mean = sum(map(sum, distances)) / (len(n) * (len(n) - 1))
        to = [[scaled([a - b for a, b in zip(e[j], e[i], strict=True)]) if i != j else None for j in n] for i in n]
        cosines = [0.0 if i in (j, k) else dot(to[i][j], to[i][k]) for i in n for j in n for k in n]
        relations.append(([d / mean for d in flat(distances)], cosines))
    distance, angle = (
        sum(huber(a - b) for a, b in zip(*pair, strict=True)) / len(pair[0]) for pair in zip(*relations, strict=True)
    )
    return distance_weight * distance + angle_weight * angle


def pkt(students, teachers, labels, eps=1e-7):
    p, q = [], []
    for rows, out in ((teachers, p), (students, q)):
        e = read(rows, "wide embedding")
        for a in e:
            row = [1 + dot(scaled(a), scaled(b)) for b in e]
            out += [v / sum(row) for v in row]
    return sum(a * math.log((a + eps) / (b + eps)) for a, b in zip(p, q, strict=True)) / len(p)


def kdsvd(student, teacher, y):
    """By the singular value decomposition of the map itself, where the code takes the Gram matrix."""
    vectors = []
    for name in ("-3", "-2", "-1"):
        s, t = (np.linalg.svd(np.reshape(x, (-1, len(x[0][0]))))[2] for x in (read(student, name), read(teacher, name)))
        first = t[0] * np.sign(t[0].sum())
        nearest = max(s[:4], key=lambda v: abs(v @ first))
        vectors.append((nearest * np.sign(nearest @ first), first))
    total = 0.0
    for before, now in itertools.pairwise(vectors):
        s, t = (np.exp(-(np.subtract.outer(a, b) ** 2) / 8) for a, b in zip(now, before, strict=True))
        total += ((s - t) ** 2).sum()
    return total


def linear(weight, bias, row):
    return [dot(w, row) + b for w, b in zip(weight, bias, strict=True)]


def relu(row):
    return [max(v, 0.0) for v in row]


def places(channels):
    """The vectors over channels, position by position."""
    return list(zip(*(flat(plane) for plane in channels), strict=True))


def numbers(module):
    return {name: value.squeeze().tolist() for name, value in module.state_dict().items()}


def cc(students, teachers, labels):
    gaps = []
    maps = [numbers(connector) for connector in CORRELATION.connectors]
    for s, t in zip(*(read(rows, "wide embedding") for rows in (students, teachers)), strict=True):
        a, b = (linear(m["0.weight"], m["0.bias"], row) for m, row in zip(maps, (s, t), strict=True))
        gaps.append([abs(v - w) for v, w in zip(a, b, strict=True)])
    return sum(dot(a, b) for a, b in itertools.pairwise(gaps)) / (len(gaps) - 1)


def fitnet(student, teacher, y):
    m = numbers(HINT.connectors[0])
    s, t = places(read(student, "-2")), places(read(teacher, "wide"))
    total = 0.0
    for a, b in zip(s, t, strict=True):
        normed = [
            weight * (v - mean) / math.sqrt(variance + 1e-5) + bias
            for v, mean, variance, weight, bias in zip(
                linear(m["0.weight"], m["0.bias"], a),
                *(m[f"1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")),
                strict=True,
            )
        ]
        total += mean_square(relu(normed), b)
    return total / len(s)


def vid(student, teacher, y):
    total = 0.0
    layers = (("-3", "-3"), ("-2", "wide"), ("-1", "-1"))
    for gaussian, (own, other) in zip(VARIATIONAL.connectors, layers, strict=True):
        m = numbers(gaussian)
        s, t = places(read(student, own)), places(read(teacher, other))
        for a, b in zip(s, t, strict=True):
            for index in (0, 2, 4):
                weight = m[f"mean.{index}.weight"]
                a = linear(weight, [0.0] * len(weight), a if index == 0 else relu(a))
            for mean, value, scale in zip(a, b, m["log_scale"], strict=True):
                variance = math.log(1 + math.exp(scale)) + 1e-5
                total += ((value - mean) ** 2 / variance + math.log(variance)) / 2 / len(s) / len(b)
    return total


HINT = built(FitNet(-2, "wide"))
CORRELATION = built(CC(dim=3))
VARIATIONAL = built(VID((-3, -2, -1), (-3, "wide", -1)))

NOT_ALONE = "gives_each_sample_a_loss_of_its_own"
AT_ITS_START = {"is_zero_at_the_teacher": "what it learns is not trained"}

STANDARDISED = built(PKD())
FEATURE_SETTINGS = {
    "AT": Setting(AT(), at, outputs=featured),
    "CC": Setting(
        CORRELATION,
        batch_reference=cc,
        lacks={
            **AT_ITS_START,
            NOT_ALONE: "it compares each sample with the next",
            "permutes_with_the_batch": "it compares each sample with the next",
        },
        outputs=featured,
    ),
    "FitNet": Setting(HINT, fitnet, AT_ITS_START, outputs=featured),
    "KDSVD": Setting(KDSVD(), kdsvd, outputs=featured),
    "NST": Setting(NST(), nst, outputs=featured),
    "PKD": Setting(
        STANDARDISED, batch_reference=pkd, lacks={NOT_ALONE: "its statistics are the batch's"}, outputs=featured
    ),
    "PKT": Setting(PKT(), batch_reference=pkt, lacks={NOT_ALONE: "it compares the samples"}, outputs=featured),
    "RKD": Setting(RKD(), batch_reference=rkd, lacks={NOT_ALONE: "it compares the samples"}, outputs=featured),
    "SP": Setting(SP(), batch_reference=sp, lacks={NOT_ALONE: "it compares the samples"}, outputs=featured),
    "VID": Setting(VARIATIONAL, vid, AT_ITS_START, outputs=featured),
}
