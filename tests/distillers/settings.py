"""Every exported distiller with the arguments that it is tested with, and an independent slow reference."""

import itertools
import math
import statistics

import torch
from connector_settings import CONNECTOR_SETTINGS
from feature_settings import FEATURE_SETTINGS
from logit_settings import LOGIT_SETTINGS
from projector_settings import PROJECTOR_SETTINGS
from properties import Setting
from slow_logits import cross_entropy, kd, kl, softmax

from lightning_biaskd import Outputs
from lightning_biaskd.distillers import (
    CTKD,
    DIST,
    DKD,
    KD,
    MLKD,
    NKD,
    PLD,
    RC,
    RLD,
    SDD,
    SLD,
    TTM,
    WKD,
    WSLD,
    WTTM,
    LabelSmoothing,
    LogitStandardization,
    NormKD,
    TeacherFree,
    WeightedSum,
)


def dkd(student, teacher, y, alpha=1.0, beta=8.0, tau=4.0):
    p, q = softmax([z / tau for z in teacher]), softmax([z / tau for z in student])
    pair = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
    rest_p = [v / (1 - p[y]) for i, v in enumerate(p) if i != y]
    rest_q = [v / (1 - q[y]) for i, v in enumerate(q) if i != y]
    return tau**2 * (alpha * pair + beta * kl(rest_p, rest_q))


def pearson(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    cov = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return cov / (math.dist(x, [mean_x] * len(x)) * math.dist(y, [mean_y] * len(y)) + 1e-8)


def dist(students, teachers, labels, beta=1.0, gamma=1.0, tau=4.0):
    p = [softmax([z / tau for z in row]) for row in teachers]
    q = [softmax([z / tau for z in row]) for row in students]
    inter = [1 - pearson(a, b) for a, b in zip(q, p, strict=True)]
    intra = [1 - pearson(a, b) for a, b in zip(zip(*q, strict=True), zip(*p, strict=True), strict=True)]
    return tau**2 * (beta * sum(inter) / len(inter) + gamma * sum(intra) / len(intra))


def nkd(student, teacher, y, gamma=1.5, tau=1.0):
    rest_p = softmax([z / tau for i, z in enumerate(teacher) if i != y])
    rest_q = softmax([z / tau for i, z in enumerate(student) if i != y])
    label = -softmax(teacher)[y] * math.log(softmax(student)[y])
    return label + gamma * tau**2 * cross_entropy(rest_p, rest_q)


def standardized(row):
    return [(z - statistics.mean(row)) / (statistics.stdev(row) + 1e-7) for z in row]


def ttm(student, teacher, y, exponent=0.1, weighted=False):
    powers = [p**exponent for p in softmax(teacher)]
    loss = kl([p / sum(powers) for p in powers], softmax(student))
    return loss * sum(powers) if weighted else loss


def norm_kd(student, teacher, y, tau=2.0):
    tau_s, tau_t = tau * statistics.stdev(student), tau * statistics.stdev(teacher)
    return tau_t**2 * kl(softmax([z / tau_t for z in teacher]), softmax([z / tau_s for z in student]))


def wsld(student, teacher, y, tau=4.0):
    ratio = math.log(softmax(student)[y]) / (math.log(softmax(teacher)[y]) - 1e-7)
    soft = cross_entropy(softmax([z / tau for z in teacher]), softmax([z / tau for z in student]))
    return (1 - math.exp(-ratio)) * tau**2 * soft


def label_smoothing(student, teacher, y, smoothing=0.1):
    smooth = [smoothing / len(student) + (1 - smoothing) * (i == y) for i in range(len(student))]
    return cross_entropy(smooth, softmax(student))


def teacher_free(student, teacher, y, correct=0.99, tau=20.0):
    virtual = [correct if i == y else (1 - correct) / (len(student) - 1) for i in range(len(student))]
    return kl(softmax([v / tau for v in virtual]), softmax(student))


def ctkd(student, teacher, y):
    return kd(student, teacher, y, tau=1 + 20 / (1 + math.exp(-1.0)))


def rc(student, y, tau=4.0):
    corrected = [z + max(student) if c == y else z for c, z in enumerate(student)]
    return kd(student, corrected, y, tau)


def swapped(logits, y):
    top = logits.index(max(logits))
    exchanged = list(logits)
    exchanged[y], exchanged[top] = logits[top], logits[y]
    return exchanged


def sld(student, teacher, y):
    return sum(
        kd(student, swapped(source, y), y, tau)
        for tau in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
        for source in (teacher, student)
    )


def rld(student, teacher, y, alpha=1.0, beta=8.0, tau=4.0):
    top, p_y = max(softmax(teacher)), softmax(student)[y]
    below = [c for c, z in enumerate(teacher) if z < teacher[y]]
    confidence = kl([top, 1 - top], [p_y, 1 - p_y])
    correlation = kd([student[c] for c in below], [teacher[c] for c in below], None, tau) if below else 0.0
    return alpha * confidence + beta * correlation


def pld(student, teacher, y, tau=4.0):
    q, total, left = softmax([z / tau for z in teacher]), 0.0, set(range(len(student)))
    while left:
        chosen = y if y in left else max(left, key=lambda c: (teacher[c], -c))
        total -= q[chosen] * math.log(math.exp(student[chosen]) / sum(math.exp(student[c]) for c in left))
        left.remove(chosen)
    return total


def wkd(student, teacher, y, distances, weight, tau, epsilon=0.05, iterations=10):
    rest = [c for c in range(len(student)) if c != y]
    p = softmax([student[c] / tau for c in rest])
    q = softmax([teacher[c] / tau for c in rest])
    cost = [[1 - math.exp(-distances[a][b]) + 1e-8 for b in rest] for a in rest]
    kernel = [[math.exp(-c / epsilon) for c in row] for row in cost]
    n = range(len(rest))
    u = [1 / len(rest)] * len(rest)
    for _ in range(iterations):
        v = [q[j] / sum(kernel[i][j] * u[i] for i in n) for j in n]
        u = [p[i] / sum(kernel[i][j] * v[j] for j in n) for i in n]
    transport = sum(u[i] * kernel[i][j] * cost[i][j] * v[j] for i in n for j in n)
    return -softmax(teacher)[y] * math.log(softmax(student)[y]) + weight * transport


def gain(c, h, w):
    """By how much the cell (h, w) of an 8x8 map has more or less of class c than the whole image."""
    return 1 + 1.5 * math.sin(1 + 2 * c + math.pi / 4 * (h + 3 * w))


def same(rows):
    return rows


def mapped(logits):
    """Outputs with a map whose mean is the logits, and a classifier that hands it on."""
    c, side = torch.arange(logits.shape[1])[:, None, None], torch.arange(8)
    gains = 1 + 1.5 * torch.sin(1 + 2 * c + math.pi / 4 * (side[:, None] + 3 * side).double())
    return Outputs(logits, {"-1": logits[:, :, None, None] * gains.to(logits.dtype)}, head=same)


def sdd(student, teacher, y, inner, scales=(1, 2, 4)):
    total, cells = 0.0, 0
    right = teacher[y] == max(teacher)
    for scale in scales:
        side = 8 // scale
        for top, left in itertools.product(range(0, 8, side), repeat=2):
            s, t = (
                [
                    z * statistics.fmean(gain(c, top + i, left + j) for i in range(side) for j in range(side))
                    for c, z in enumerate(row)
                ]
                for row in (student, teacher)
            )
            total += (1 if (t[y] == max(t)) == right else 2) * inner(s, t, y)
            cells += 1
    return total / cells


def mlkd(student, teacher, target):
    """Mean over the batch."""
    rows, classes = range(len(target)), range(len(student[0]))
    total = sum(kd(s, t, None, tau) for s, t in zip(student, teacher, strict=True) for tau in (2, 3, 4, 5, 6)) / len(
        rows
    )
    for tau in (2, 3, 4, 5, 6):
        p = [softmax([z / tau for z in row]) for row in student]
        q = [softmax([z / tau for z in row]) for row in teacher]
        for i in rows:
            for j in rows:
                gap = sum(q[i][c] * q[j][c] - p[i][c] * p[j][c] for c in classes)
                total += gap**2 / len(rows)
        for c in classes:
            for d in classes:
                gap = sum(q[i][c] * q[i][d] - p[i][c] * p[i][d] for i in rows)
                total += gap**2 / len(classes)
    return total


NEAR = [[0.0 if a == b else 0.1 + 0.9 * abs(a - b) / 5 for b in range(6)] for a in range(6)]
NOT_ZERO = "is_zero_at_the_teacher"
CORRECTS = {NOT_ZERO: "it corrects a wrong answer, so a student that copies the teacher is not done"}

SETTINGS = {
    **CONNECTOR_SETTINGS,
    **FEATURE_SETTINGS,
    **LOGIT_SETTINGS,
    **PROJECTOR_SETTINGS,
    "KD": Setting(KD(), kd),
    "DKD": Setting(DKD(), dkd),
    "DIST": Setting(
        DIST(),
        batch_reference=dist,
        lacks={
            "gives_each_sample_a_loss_of_its_own": "the intra-class relation is over the batch",
            NOT_ZERO: "only nearly, as its denominators are published with 1e-8 more",
        },
    ),
    "LabelSmoothing": Setting(LabelSmoothing(), label_smoothing, {NOT_ZERO: "it knows the label alone"}),
    "LogitStandardization": Setting(
        LogitStandardization(DKD(temperature=2.0)),
        lambda s, t, y: 9.0 * dkd(standardized(s), standardized(t), y, tau=2.0),
    ),
    "NKD": Setting(NKD(), nkd, {NOT_ZERO: "a cross-entropy, not a divergence"}),
    "NormKD": Setting(NormKD(), norm_kd),
    "TTM": Setting(TTM(), ttm, {NOT_ZERO: "only the teacher is softened"}),
    "TeacherFree": Setting(TeacherFree(), teacher_free, {NOT_ZERO: "it knows the label alone"}),
    "WSLD": Setting(WSLD(), wsld, {NOT_ZERO: "a cross-entropy, not a divergence"}),
    "WTTM": Setting(
        WTTM(), lambda s, t, y: ttm(s, t, y, 0.2, weighted=True), {NOT_ZERO: "only the teacher is softened"}
    ),
    "WeightedSum": Setting(
        WeightedSum([(KD(2.0), 0.5), (DKD(beta=2.0), 3.0)]),
        lambda s, t, y: 0.5 * kd(s, t, y, tau=2.0) + 3.0 * dkd(s, t, y, beta=2.0),
    ),
    "CTKD": Setting(CTKD(), ctkd),
    "MLKD": Setting(
        MLKD(),
        batch_reference=mlkd,
        lacks={"gives_each_sample_a_loss_of_its_own": "batch and class level compare the samples of a batch"},
    ),
    "PLD": Setting(PLD(), pld, {NOT_ZERO: "a cross-entropy of choices, not a divergence"}),
    "RC": Setting(RC(), lambda s, t, y: rc(s, y), CORRECTS),
    "RLD": Setting(RLD(), rld, CORRECTS),
    "SDD": Setting(SDD(), lambda s, t, y: sdd(s, t, y, dkd), outputs=mapped),
    "SLD": Setting(SLD(), sld, CORRECTS),
    "WKD": Setting(
        WKD(weight=20.0, temperature=2.0),
        lambda s, t, y: wkd(s, t, y, [[float(a != b) for b in range(6)] for a in range(6)], 20.0, 2.0),
        {NOT_ZERO: "the label's part is a cross-entropy, and entropy blurs the transport"},
    ),
}
