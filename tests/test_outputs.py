from types import SimpleNamespace

import pytest
import torch
from tiny import network
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


def test_features_are_those_of_the_layer_and_carry_gradient():
    net = network()
    outputs = FeatureTap(net, ["0", "4"])(IMAGE)
    torch.testing.assert_close(outputs.features["0"], net[0](IMAGE))
    torch.testing.assert_close(outputs.logits, net[5](outputs.features["4"]))
    assert outputs.features["0"].requires_grad


def test_with_nothing_tapped_there_is_no_hook():
    net = network()
    FeatureTap(net)
    assert not any(module._forward_hooks for module in net.modules())


def test_an_unknown_layer_lists_near_names():
    net = nn.Sequential()
    net.add_module("layer1", nn.Linear(2, 2))
    net.add_module("layer2", nn.Linear(2, 2))
    with pytest.raises(UserError, match="has no layer 'layer3'; near names: .*layer2"):
        FeatureTap(net, ["layer3"])


def test_the_head_is_the_layer_itself_and_handed_out_only_when_named():
    net = network()
    outputs = FeatureTap(net, ["4"], head="5")(IMAGE)
    torch.testing.assert_close(outputs.head(outputs.features["4"]), outputs.logits)
    assert FeatureTap(net)(IMAGE).head is None
    assert FeatureTap(Answers(Outputs), head="")(IMAGE).head is not None
    with pytest.raises(UserError, match="has no layer 'fc'"):
        FeatureTap(net, head="fc")
