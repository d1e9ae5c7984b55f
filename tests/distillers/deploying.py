"""Methods whose deployed network isn't the student as it was trained."""

import torch
from tiny import CLASSES, TinyData

from lightning_biaskd import DistillationModule
from lightning_biaskd.models import CIFARResNet

IMAGE = torch.randn(5, 1, 8, 8)


def networks(student=4, teacher=6):
    return [CIFARResNet(8, CLASSES, 1, (w, w, w, w)) for w in (student, teacher)]


def fitted(trainer, distiller, epochs=1, callbacks=(), **kwargs):
    fit = DistillationModule(*networks(), distiller, bias=None, kd_weight=1.0, **kwargs)
    run = trainer(max_epochs=epochs, callbacks=list(callbacks))
    run.fit(fit, TinyData())
    return fit.eval(), run
