from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_biaskd import FeatureTap, Outputs, UserError

IMAGE = torch.zeros(2, 1, 6, 6)


class Answers(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, image):
        return self.wrap(image.flatten(1)[:, :3])


@pytest.mark.parametrize(
    "wrap", [lambda z: z, lambda z: {"logits": z}, lambda z: SimpleNamespace(logits=z), lambda z: Outputs(z)]
)
def test_logits_are_found_in_what_networks_return(wrap):
    assert FeatureTap(Answers(wrap))(IMAGE).logits.shape == (2, 3)


@pytest.mark.parametrize("wrap", [lambda z: [z], lambda z: {"scores": z}])
def test_an_answer_without_logits_is_one_line(wrap):
    with pytest.raises(UserError, match="without logits"):
        FeatureTap(Answers(wrap))(IMAGE)
