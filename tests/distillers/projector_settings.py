"""The settings of the methods whose student learns to project; features are made of the logits, row by row."""

import math

import torch
from properties import Setting
from torch import nn

from lightning_biaskd import Outputs
from lightning_biaskd.distillers import CATKD, CRD, OFD, SRD, ReviewKD, SimKD, WKDFeature
from lightning_biaskd.distillers.crd import draw_negatives
from lightning_biaskd.randomness.bits import GOLDEN

SHAPES = {
    **{"-3": (2, 8, 8), "-2": (3, 4, 4), "-1": (5, 4, 4), "wide": (6, 4, 4)},
    **{"-2:pre": (3, 4, 4), "-1:pre": (4, 2, 2), "-3:pre": (3, 6, 6), "wide:pre": (2, 5, 5)},
}
IMAGES = 12
HEADS = {classes: nn.Linear(5, classes).double() for classes in (5, 6)}
for number, head in enumerate(HEADS.values()):
    head.weight.data = torch.cos(torch.arange(head.weight.numel()) + number).double().view_as(head.weight)


def feature(name, logits):
    """Of full rank; at least 0, unless before the activation: (B, C) to (B, *shape)."""
    shape = SHAPES[name]
    classes, size = torch.arange(1, logits.shape[1] + 1), torch.arange(1, math.prod(shape) + 1)
    mixed = (logits @ torch.sin(classes[:, None] * size.double()).to(logits.dtype)).unflatten(1, shape)
    return mixed if name.endswith("pre") else mixed.abs()


def projected(logits):
    """Outputs with the features of a network whose classifier reads the average of its last map."""
    maps = {name: feature(name, logits) for name in SHAPES}
    embedding, head = maps["-1"].mean((2, 3)), HEADS[logits.shape[1]]
    sample = (logits.detach()[:, 0].float() * 100).long().abs() % IMAGES
    return Outputs(logits, maps, embedding, head, sample)


def settled(distiller):
    """Built, with weights and statistics by formula."""
    few = projected(torch.linspace(-3, 3, 24, dtype=torch.float64).view(4, 6))
    distiller.build(few, few, IMAGES)
    known = {"labels": torch.arange(IMAGES) % 6, "normalizers": torch.tensor([9.0, 7.0]), "step": torch.tensor(3)}
    with torch.no_grad():
        for number, (name, value) in enumerate(distiller.state_dict().items(), start=1):
            wave = torch.sin(number * torch.arange(1, value.numel() + 1).double()).view_as(value)
            if name in known:
                value.copy_(known[name])
            elif value.is_floating_point():
                value.copy_(1 + wave / 2 if "running_var" in name else wave)
    return distiller.eval()


def read(name, row):
    return feature(name, torch.tensor([row], dtype=torch.float64))[0].tolist()


def each(channels, function):
    return [[[function(v) for v in line] for line in plane] for plane in channels]


def mean(values):
    return sum(values) / len(values)


def flat(nested):
    return [v for part in nested for v in flat(part)] if isinstance(nested, list) else [nested]


def convolved(channels, module):
    """With zero padding of half the kernel."""
    weight = module.weight.tolist()
    bias = [0.0] * len(weight) if module.bias is None else module.bias.tolist()
    height, width, side = len(channels[0]), len(channels[0][0]), len(weight[0][0])
    half = side // 2

    def at(c, i, j):
        return channels[c][i][j] if 0 <= i < height and 0 <= j < width else 0.0

    return [
        [
            [
                b
                + sum(
                    w[c][p][q] * at(c, i + p - half, j + q - half)
                    for c in range(len(channels))
                    for p in range(side)
                    for q in range(side)
                )
                for j in range(width)
            ]
            for i in range(height)
        ]
        for w, b in zip(weight, bias, strict=True)
    ]


def normed(channels, module):
    stats = (module.running_mean, module.running_var, module.weight, module.bias)
    return [
        [[(v - m) / math.sqrt(s2 + module.eps) * w + b for v in line] for line in plane]
        for plane, m, s2, w, b in zip(channels, *(x.tolist() for x in stats), strict=True)
    ]


def relu(channels):
    return each(channels, lambda v: max(v, 0.0))


def window(n, size, cells):
    return range(n * size // cells, math.ceil((n + 1) * size / cells))


def cells(plane, height, width):
    """The values of each cell of an adaptive grid, row by row."""
    return [
        [plane[i][j] for i in window(n, len(plane), height) for j in window(m, len(plane[0]), width)]
        for n in range(height)
        for m in range(width)
    ]


def pooled(channels, height, width):
    planes = [[mean(cell) for cell in cells(plane, height, width)] for plane in channels]
    return [[plane[width * i : width * (i + 1)] for i in range(height)] for plane in planes]


def nearest(channels, height, width):
    return [
        [[plane[i * len(plane) // height][j * len(plane[0]) // width] for j in range(width)] for i in range(height)]
        for plane in channels
    ]


def squares(a, b):
    return [(x - y) ** 2 for x, y in zip(flat(a), flat(b), strict=True)]


def ofd(student, teacher, y):
    total = 0.0
    layers = ((0.5, "-2:pre", "wide:pre"), (1.0, "-1:pre", "-1:pre"))
    for stage, (factor, own, others) in zip(OVERHAUL.connectors, layers, strict=True):
        convolution, norm = stage.connector
        source = normed(convolved(read(own, student), convolution), norm)
        target = pooled(read(others, teacher), len(source[0]), len(source[0][0]))
        for s_plane, t_plane, margin in zip(source, target, stage.margin.tolist(), strict=True):
            for s, t in zip(flat(s_plane), flat(t_plane), strict=True):
                if t > 0 or s > max(t, margin):
                    total += factor * (s - max(t, margin)) ** 2
    return total


def review_kd(student, teacher, y):
    average = [[[mean(flat(plane))]] for plane in read("-1", student)]
    taught = [[[mean(flat(plane))]] for plane in read("-1", teacher)]
    levels = [(average, taught)]
    levels += [(read(own, student), read(f"{own}:pre", teacher)) for own in ("-1", "-2", "-3")]
    total, fused = 0.0, None
    for fusion, (s, t) in zip(REVIEW.connectors, levels, strict=True):
        x = normed(convolved(s, fusion.reduce[0]), fusion.reduce[1])
        if fused is not None:
            fused = nearest(fused, len(x[0]), len(x[0][0]))
            own, others = each(convolved(x + fused, fusion.attend[0]), lambda v: 1 / (1 + math.exp(-v)))
            x = [
                [
                    [a * p + b * q for a, p, b, q in zip(*lines, strict=True)]
                    for lines in zip(own, u, others, v, strict=True)
                ]
                for u, v in zip(x, fused, strict=True)
            ]
        fused = nearest(x, len(t[0]), len(t[0][0]))
        answer = normed(convolved(fused, fusion.expand[0]), fusion.expand[1])
        sides = [side for side in (4, 2, 1) if side < len(t[0])]
        parts = [mean(squares(answer, t))]
        parts += [mean(squares(pooled(answer, side, side), pooled(t, side, side))) for side in sides]
        weights = [0.5**n for n in range(len(parts))]
        total += sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
    return total


def sim_projection(row):
    x = read("-1", row)
    layers = list(REUSE.connectors[0])
    for convolution, norm in zip(layers[::3], layers[1::3], strict=True):
        x = relu(normed(convolved(x, convolution), norm))
    return x


def simkd(student, teacher, y):
    return mean(squares(sim_projection(student), read("-1", teacher)))


def cat_kd(student, teacher, y, resolution=2):
    maps = []
    for row in (student, teacher):
        f = read("-1", row)
        speak = [
            [[sum(w * f[d][i][j] for d, w in enumerate(weight)) for j in range(4)] for i in range(4)]
            for weight in HEADS[6].weight.tolist()
        ]
        planes = [flat(plane) for plane in pooled(speak, resolution, resolution)]
        maps.append([[v / math.hypot(*plane) for v in plane] for plane in planes])
    return mean(squares(*maps))


def srd(students, teachers, labels, exponent=4.0):
    (projector,) = RECIPE.connectors[0]
    averages = [[[mean(flat(p)) for p in read("-1", row)] for row in rows] for rows in (students, teachers)]
    own = [[sum(w * v for w, v in zip(row, e, strict=True)) for e in averages[0]] for row in projector.weight.tolist()]
    total = 0.0
    for s, t in zip(own, zip(*averages[1], strict=True), strict=True):
        a, b = ([(v - mean(x)) / math.sqrt(mean([(u - mean(x)) ** 2 for u in x]) + 1e-4) for v in x] for x in (s, t))
        total += sum(abs(p - q) ** exponent for p, q in zip(a, b, strict=True))
    return math.log(total)


def wkd_feature(student, teacher, y, mean_weight=4.0, grid=3):
    convolution, norm, _ = GAUSSIAN.connectors[0]
    own = relu(normed(convolved(read("-1", student), convolution), norm))
    total = 0.0
    for s_plane, t_plane in zip(own, read("wide", teacher), strict=True):
        for a, b in zip(cells(s_plane, grid, grid), cells(t_plane, grid, grid), strict=True):
            deviation = [math.sqrt(sum((v - mean(x)) ** 2 for v in x) / (len(x) - 1) + 1e-5) for x in (a, b)]
            total += (mean_weight * (mean(a) - mean(b)) ** 2 + (deviation[0] - deviation[1]) ** 2) / grid**2
    return total


def unit(row):
    return [v / math.hypot(*row) for v in row]


def nce(anchor, memory, drawn, z, temperature=0.07):
    noise, total = (len(drawn) - 1) / len(memory), 0.0
    for n, j in enumerate(drawn):
        h = math.exp(sum(a * b for a, b in zip(anchor, memory[j], strict=True)) / temperature) / z
        total -= math.log((noise if n else h) / (h + noise + 1e-7))
    return total


def embedded(number, row):
    (linear,) = CONTRAST.connectors[number]
    average = [mean(flat(plane)) for plane in read("-1", row)]
    pairs = zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
    return unit([b + sum(w * v for w, v in zip(weight, average, strict=True)) for weight, b in pairs])


def crd(student, teacher, y):
    sample = projected(torch.tensor([student], dtype=torch.float64)).index
    seed = CONTRAST.step + sample * GOLDEN
    drawn = [int(sample), *draw_negatives(CONTRAST.labels, torch.tensor([y]), seed, CONTRAST.negatives)[0].tolist()]
    memories = CONTRAST.teacher_memory.tolist(), CONTRAST.student_memory.tolist()
    return sum(
        nce(embedded(number, row), memory, drawn, z)
        for number, (row, memory, z) in enumerate(zip((student, teacher), memories, (9.0, 7.0), strict=True))
    )


OVERHAUL = settled(OFD((-2, -1), ("wide", -1)))
REVIEW = settled(ReviewKD())
REUSE = settled(SimKD())
RECIPE = settled(SRD())
GAUSSIAN = settled(WKDFeature(-1, "wide", grid=3))
CONTRAST = settled(CRD(dim=4, negatives=7))

AT_ITS_START = {"is_zero_at_the_teacher": "what it learns is not trained"}

PROJECTOR_SETTINGS = {
    "CATKD": Setting(CATKD(normalize=True), cat_kd, outputs=projected),
    "CRD": Setting(
        CONTRAST, crd, {"is_zero_at_the_teacher": "partners are told from others with some doubt"}, outputs=projected
    ),
    "OFD": Setting(OVERHAUL, ofd, AT_ITS_START, outputs=projected),
    "ReviewKD": Setting(REVIEW, review_kd, AT_ITS_START, outputs=projected),
    "SRD": Setting(
        RECIPE,
        batch_reference=srd,
        lacks={
            **AT_ITS_START,
            "gives_each_sample_a_loss_of_its_own": "the loss is a logarithm of the sum over the batch",
        },
        outputs=projected,
    ),
    "SimKD": Setting(REUSE, simkd, AT_ITS_START, outputs=projected),
    "WKDFeature": Setting(GAUSSIAN, wkd_feature, AT_ITS_START, outputs=projected),
}
