"""The settings of further methods on logits; the index of an image is made of its logits."""

import math
import statistics

from properties import Setting
from slow_logits import cross_entropy, kd, softmax

from lightning_biaskd import Outputs
from lightning_biaskd.distillers import ABKD, OFA, DistillationToken, Hard, LumiNet, TeKAP

IMAGES = 12


def image_of(logits):
    """The index of each image, by formula."""
    return (logits.detach()[:, 0].float() * 100).long().abs() % IMAGES


def indexed(logits):
    """Outputs with the index of each image."""
    return Outputs(logits, index=image_of(logits))


def abkd(student, teacher, y, alpha=0.8, beta=0.3, tau=4.0):
    p, q = softmax([z / tau for z in teacher]), softmax([z / tau for z in student])
    total = alpha + beta
    terms = (a**alpha * b**beta - (alpha * a**total + beta * b**total) / total for a, b in zip(p, q, strict=True))
    return -sum(terms) / (alpha * beta)


def perceived(rows):
    """The rows, each class standardised over all of them."""
    columns = list(zip(*rows, strict=True))
    scaled = [
        [(z - statistics.mean(column)) / math.sqrt(statistics.pvariance(column) + 1e-5) for z in column]
        for column in columns
    ]
    return list(zip(*scaled, strict=True))


def luminet(students, teachers, labels, alpha=33.0, tau=4.0):
    pairs = zip(perceived(students), perceived(teachers), strict=True)
    return alpha**2 / tau**2 * statistics.mean(kd(s, t, None, tau) for s, t in pairs)


def ofa(student, teacher, y, exponent=1.5):
    weights = [(p + 1) ** exponent - 1 if c == y else p**exponent for c, p in enumerate(softmax(teacher))]
    return cross_entropy(weights, softmax(student))


def hard(student, teacher, y):
    return -math.log(softmax(student)[teacher.index(max(teacher))])


def two_heads(logits):
    """Outputs of a student with two heads whose mean is the logits."""
    token = logits.flip(1) / 2
    return Outputs(logits, {"head": 2 * logits - token, "head_dist": token})


def of_token(student, teacher, y):
    return hard([z / 2 for z in reversed(student)], teacher, y)


MASK = 2**64 - 1


def mixed(x):
    """The finaliser of splitmix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def drawn(draws, index, count):
    """Random 24-bit numbers of one image."""
    golden, positive = 0x9E3779B97F4A7C15, 2**63 - 1
    start = mixed((int(draws.seed) * golden + int(draws.epoch) + 1) & MASK)
    bits = mixed((mixed((start + index) & MASK) + golden) & MASK) & positive
    return [(mixed((bits + n + golden) & MASK) & positive) >> 39 for n in range(count)]


def tekap(student, teacher, y, copies=3, weight=0.8, share=0.1):
    classes, index = len(student), int(abs(student[0] * 100)) % IMAGES
    normal = [
        statistics.NormalDist().inv_cdf((b + 0.5) / 2**24) for b in drawn(PERTURBED.draws, index, copies * classes)
    ]
    loss = kd(student, teacher, y)
    for n in range(copies):
        noise = normal[n * classes : (n + 1) * classes]
        copy = [(1 - share) * z + share * e for z, e in zip(teacher, noise, strict=True)]
        loss += weight * kd(student, copy, y)
    return loss


PERTURBED = TeKAP()
PERTURBED.draws.seed.fill_(7)
PERTURBED.draws.set_epoch(3)

NOT_A_DIVERGENCE = {"is_zero_at_the_teacher": "a cross-entropy, not a divergence"}

LOGIT_SETTINGS = {
    "ABKD": Setting(ABKD(), abkd),
    "DistillationToken": Setting(DistillationToken(), of_token, NOT_A_DIVERGENCE, outputs=two_heads),
    "Hard": Setting(Hard(), hard, NOT_A_DIVERGENCE),
    "LumiNet": Setting(
        LumiNet(),
        batch_reference=luminet,
        lacks={"gives_each_sample_a_loss_of_its_own": "each class is standardised over the batch"},
    ),
    "OFA": Setting(OFA(), ofa, NOT_A_DIVERGENCE),
    "TeKAP": Setting(PERTURBED, tekap, {"is_zero_at_the_teacher": "the copies are perturbed"}, outputs=indexed),
}
