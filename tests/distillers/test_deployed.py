"""What a method deploys is what was evaluated."""

import pytest
import torch
from deploying import IMAGE, fitted
from tiny import TinyData

from lightning_biaskd import KD, WeightedSum
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
