"""A method with memories in training, shared by the tests of one process and of several."""

import torch
from projector_settings import IMAGES, projected
from properties import batch, trained
from torch import nn

from lightning_biaskd.distillers import CRD
from lightning_biaskd.networks.outputs import with_index


def remembering():
    """A method with memories by formula, and a batch of images 0, 1, 2, …"""
    student, teacher, target = batch()
    distiller = CRD(dim=4, negatives=7)
    distiller.build(projected(student), projected(teacher), IMAGES)
    wave = (torch.arange(2 * IMAGES * 4, dtype=torch.float64) + 1).cos().view(2, IMAGES, 4)
    distiller.student_memory.copy_(wave[0])
    distiller.teacher_memory.copy_(wave[1])
    distiller.step.fill_(5)
    return distiller, with_index(projected(student), torch.arange(8)), projected(teacher), target


def state(distiller):
    names = ("student_memory", "teacher_memory", "labels", "normalizers")
    return [getattr(distiller, name).detach().clone() for name in names]


class Whole(nn.Module):
    """What DDP wraps."""

    def __init__(self, distiller):
        super().__init__()
        self.distiller = distiller

    def forward(self, *args):
        return self.distiller(*args).mean()


def trained_for_three_steps(distiller, wrap, rank=0, world=1):
    """Of images that come several times, within a rank and on several; the loss of all, the gradients, the state."""
    student, teacher, target = remembering()[1:]
    keep = torch.tensor([True, True, False, True, True, True, False, True])
    part = slice(rank * 8 // world, (rank + 1) * 8 // world)
    model, total = wrap(Whole(distiller)), torch.zeros((), dtype=torch.float64)
    for images in ([0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 2, 3, 1, 4, 2, 5], [7, 6, 5, 0, 6, 7, 5, 5]):
        own = with_index(projected(student.logits[part]), torch.tensor(images)[part])
        loss = model(own, projected(teacher.logits[part]), target[part], keep[part])
        loss.backward()
        total += loss.detach() / world
    return model, total, [p.grad for p in trained(distiller)], state(distiller)
