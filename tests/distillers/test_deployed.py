"""What a method deploys is what was evaluated."""

import pytest
import torch
from deploying import IMAGE, fitted
from lightning.pytorch import Callback
from tiny import TinyData, snapshot

from lightning_biaskd import EMA, KD, WeightedSum
from lightning_biaskd.distillers import NORM, SimKD

SIMKD = {"epochs": 1, "ce_weight": 0.0}
NORM_ = {"epochs": 2, "ce_weight": 0.1}


@pytest.mark.parametrize(
    ("distiller", "how"),
    [
        (SimKD(), SIMKD),
        (WeightedSum([(KD(), 1.0), (SimKD(), 1.0)]), SIMKD),
        (NORM(parts=2), NORM_),
        (WeightedSum([(KD(), 1.0), (NORM(parts=2), 1.0)]), NORM_),
    ],
)
def test_the_deployed_network_is_what_was_evaluated(distiller, how, trainer):
    fit, run = fitted(trainer, distiller, **how)
    deployed = fit.deployed().eval()
    torch.testing.assert_close(deployed(IMAGE), fit(IMAGE))
    assert not torch.allclose(deployed(IMAGE), fit.student(IMAGE))
    right = [deployed(image).argmax(1) == target for image, target in TinyData().loader]
    (result,) = run.test(fit, TinyData(), verbose=False)
    assert result["test/acc1"] == pytest.approx(torch.cat(right).float().mean().item())


class Layers(Callback):
    """The layers that the method deploys, before the first and after every step."""

    def __init__(self):
        self.states = []

    def on_train_start(self, trainer, pl_module):
        self.states.append([snapshot(layer) for layer in pl_module.distiller.deployed_layers()])

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.on_train_start(trainer, pl_module)


@pytest.mark.parametrize(
    ("distiller", "how"),
    [(SimKD(), SIMKD), (WeightedSum([(KD(), 1.0), (NORM(parts=2), 1.0)]), NORM_)],
)
def test_the_deployed_layers_are_averaged_with_the_student(distiller, how, trainer):
    layers = Layers()
    fit, _ = fitted(trainer, distiller, **how, callbacks=[EMA(0.5, warmup=False), layers])
    assert len(layers.states[0]) == 2
    for number, layer in enumerate(fit.distiller.deployed_layers()):
        mean, *steps = [states[number] for states in layers.states]
        for name, value in snapshot(layer).items():
            for step in steps if value.is_floating_point() else steps[-1:]:
                mean[name] = (mean[name].double() + step[name]) / 2 if value.is_floating_point() else step[name]
            torch.testing.assert_close(value.double(), mean[name].double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fit.deployed().eval()(IMAGE), fit(IMAGE))
