"""With one or two classes, or one sample, a method teaches the student or refuses."""

import pytest
import torch
from feature_settings import HINT
from settings import SETTINGS, mapped
from tiny import by_gamma
from torch import nn

from lightning_biaskd import Outputs
from lightning_biaskd.distillers import (
    AT,
    CATKD,
    DIST,
    DKD,
    KD,
    KDSVD,
    NST,
    RLD,
    SDD,
    LogitStandardization,
    NormKD,
    WeightedSum,
)
from lightning_biaskd.errors import UserError
from lightning_biaskd.features.base import FeatureDistiller

MODES = ("swap", "blend", "onehot", "revise", "none", "drop")
VOID = {
    2: {"NormKD", "LogitStandardization"},
    1: {name for name, setting in SETTINGS.items() if not isinstance(setting.distiller, FeatureDistiller)},
}


def outputs_of(setting, latent, classes):
    """Outputs whose logits are the first columns of ``latent``, and whose features are made of all of them."""
    logits = latent[:, :classes]
    if not isinstance(setting.distiller, FeatureDistiller):
        return setting.outputs(logits)
    outputs = setting.outputs(latent)
    head = nn.Linear(5, classes).double() if isinstance(outputs.head, nn.Linear) else outputs.head
    return outputs._replace(logits=logits, head=head)


def case(setting, rows, classes):
    """Networks that differ, and a teacher who is right about some samples and wrong about others."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, rows, 6, dtype=torch.float64, generator=generator)
    student.requires_grad_()
    answers = outputs_of(setting, student, classes), outputs_of(setting, teacher, classes)
    return student, (*answers, torch.arange(rows) % classes)


def ways():
    yield lambda method, *args: method(*args).mean()
    for mode in MODES:
        bias = by_gamma(mode).double()
        bias.gamma.fill_(0.5)
        yield lambda method, *args, bias=bias: bias(method, *args).total


@pytest.mark.parametrize(("rows", "classes"), [(8, 2), (8, 1), (1, 6), (1, 2), (1, 1)])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_method_teaches_or_refuses(name, rows, classes):
    setting = SETTINGS[name]
    for number, loss_of in enumerate(ways()):
        student, batch = case(setting, rows, classes)
        if name in VOID.get(classes, ()):
            with pytest.raises(UserError, match=f"teaches nothing with {classes} class.*: (choose|give) "):
                loss_of(setting.distiller, *batch)
            continue
        loss = loss_of(setting.distiller, *batch)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        if rows > 1 or (number == 0 and not setting.distiller.needs.pairwise):
            assert gradient.norm() > 1e-5 * loss.abs()


@pytest.mark.parametrize(
    ("method", "who"),
    [
        (DKD(alpha=0.0), "DKD"),
        (RLD(alpha=0.0), "RLD"),
        (DIST(gamma=0.0), "DIST"),
        (LogitStandardization(KD(2.0)), "LogitStandardization"),
        (SDD(NormKD()), "NormKD"),
        (SDD(LogitStandardization()), "LogitStandardization"),
        (WeightedSum([(KD(), 1.0), (NormKD(), 0.5)]), "NormKD"),
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [None, by_gamma("swap").double()], ids=["plain", "biased"])
def test_who_teaches_nothing_with_two_classes_says_so(method, who, bias):
    for classes in (3, 2):
        student = torch.randn(8, classes, dtype=torch.float64, requires_grad=True)
        batch = mapped(student), mapped(torch.randn(8, classes, dtype=torch.float64)), torch.arange(8) % classes
        if classes == 2:
            with pytest.raises(UserError, match=f"^{who} teaches nothing with 2 classes, as it needs at least 3"):
                method(*batch) if bias is None else bias(method, *batch)
        else:
            loss = method(*batch).mean() if bias is None else bias(method, *batch).total
            assert torch.autograd.grad(loss, student)[0].norm() > 1e-5 * loss


def test_features_need_no_second_class_inside_a_sum():
    _, batch = case(SETTINGS["FitNet"], 8, 1)
    torch.testing.assert_close(WeightedSum([(HINT, 2.0)])(*batch), 2 * HINT(*batch))


def test_standardized_logits_around_a_feature_method_need_a_second_class():
    (_, two), (_, one) = (case(SETTINGS["FitNet"], 8, classes) for classes in (2, 1))
    method = LogitStandardization(HINT, weight=1.0)
    torch.testing.assert_close(method(*two), HINT(*two))
    with pytest.raises(UserError, match="LogitStandardization teaches nothing with 1 class"):
        method(*one)


@pytest.mark.parametrize("method", [AT((-2, -1)), NST((-2, -1)), KDSVD((-2, -1)), CATKD(normalize=True)], ids=str)
def test_maps_of_one_position_are_refused_where_positions_are_compared(method):
    for side in (2, 1):
        student = torch.randn(8, 5, side, side, requires_grad=True)
        teacher = torch.randn(8, 5, side, side)
        batch = [Outputs(torch.randn(8, 6), {"-2": x, "-1": x**2}, head=nn.Linear(5, 6)) for x in (student, teacher)]
        if side == 1:
            with pytest.raises(UserError, match="teaches nothing with .* name layers with larger maps"):
                method(*batch, torch.arange(8) % 6)
        else:
            loss = method(*batch, torch.arange(8) % 6).mean()
            assert torch.autograd.grad(loss, student)[0].norm() > 1e-5 * loss


def test_one_cell_of_length_one_is_refused():
    with pytest.raises(UserError, match="raise resolution, or set normalize to false"):
        CATKD(resolution=1, normalize=True)
