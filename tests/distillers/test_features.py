"""What the methods that read features do beyond the common properties."""

import copy

import pytest
import torch
from feature_settings import FEATURE_SETTINGS, SHAPES, feature, featured
from properties import batch
from tiny import TinyData, by_gamma, snapshot

from lightning_biaskd import DistillationModule, Outputs, UserError
from lightning_biaskd.distillers import (
    AT,
    CC,
    KDSVD,
    NST,
    PKT,
    RKD,
    SP,
    VID,
    FitNet,
    at_loss,
    cc_loss,
    hint_loss,
    kdsvd_loss,
    nst_loss,
    pkt_loss,
    rkd_loss,
    sp_loss,
)
from lightning_biaskd.features.base import unit
from lightning_biaskd.features.connectors import regressor
from lightning_biaskd.models import CIFARResNet

PAIRWISE = [name for name, setting in FEATURE_SETTINGS.items() if setting.distiller.needs.pairwise]
LEARNED = {"FitNet": FitNet(), "VID": VID(), "CC": CC(dim=5)}
ON_MAPS = {
    "AT": lambda s, t: at_loss(s, t, 2.0),
    "KDSVD": lambda s, t: kdsvd_loss([s, s], [t, t], 1, "columns"),
    "NST": nst_loss,
    "SP": sp_loss,
}
ON_VECTORS = {
    "CC": lambda s, t: cc_loss(s, t[:, : s.shape[1]]),
    "PKT": pkt_loss,
    "RKD": lambda s, t: rkd_loss(s, t, 25.0, 50.0),
}
every_method = pytest.mark.parametrize("name", FEATURE_SETTINGS)
every_pairwise = pytest.mark.parametrize("name", PAIRWISE)
every_learned = pytest.mark.parametrize("name", LEARNED)


def losses(name, student, teacher, keep=None):
    return FEATURE_SETTINGS[name].distiller(featured(student), featured(teacher), None, keep)


@every_pairwise
def test_a_batch_with_dropped_samples_is_the_batch_of_the_others(name):
    student, teacher, _ = batch()
    keep = torch.tensor([True, True, False, True, False, True, True, False])
    actual = losses(name, student, teacher, keep)
    torch.testing.assert_close(actual[keep], losses(name, student[keep], teacher[keep]))
    assert (actual[~keep] == 0).all()
    assert actual[keep].any()


@every_pairwise
@pytest.mark.parametrize("kept", [0, 1])
def test_where_no_two_are_kept_nothing_is_compared(name, kept):
    student, teacher, _ = batch()
    student.requires_grad_()
    actual = losses(name, student, teacher, torch.arange(8) < kept)
    actual.sum().backward()
    assert (actual == 0).all()
    assert (student.grad == 0).all()


@every_method
def test_gradients_are_those_of_finite_differences(name):
    student, teacher, _ = batch(rows=4)
    weights = torch.linspace(1, 2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: losses(name, s, teacher) @ weights, student.requires_grad_())


@pytest.mark.parametrize("name", [*ON_MAPS, *ON_VECTORS])
def test_dead_features_and_equal_ones_have_finite_gradients(name):
    """Zero vectors have no direction, equal samples no distance, equal singular values no vectors of their own."""
    shape = (4, 3, 4, 4) if name in ON_MAPS else (4, 6)
    student, teacher = torch.zeros(shape), torch.rand(shape)
    student[2:] = 1.0
    student.requires_grad_()
    for other in (teacher, torch.zeros_like(teacher)):
        loss = {**ON_MAPS, **ON_VECTORS}[name](student, other)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert (gradient[:2].abs() < 1e3).all()


def test_a_unit_vector_of_nothing_is_nothing():
    x = torch.zeros(2, 3).requires_grad_()
    unit(x).sum().backward()
    assert (unit(x) == 0).all()
    assert (x.grad == 0).all()


@every_method
def test_autocast_lowers_no_product(name):
    distiller = copy.deepcopy(FEATURE_SETTINGS[name].distiller).float()
    student, teacher = (featured(x.float()) for x in batch()[:2])
    plain = distiller(student, teacher, None)
    with torch.autocast("cpu", torch.bfloat16):
        cast = distiller(student, teacher, None)
    assert cast.dtype == torch.float32
    if name in LEARNED:  # its layers are the network's kind, and computed like those
        torch.testing.assert_close(cast, plain, rtol=0.1, atol=0.1)
    else:
        torch.testing.assert_close(cast, plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", ON_MAPS)
def test_the_larger_map_is_averaged_and_widths_may_differ(name):
    student, teacher = torch.rand(4, 3, 4, 4), torch.rand(4, 7, 2, 2)
    if name == "SP":
        assert sp_loss(student, teacher).shape == (4,)
        return
    small = student.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    torch.testing.assert_close(ON_MAPS[name](student, teacher), ON_MAPS[name](small, teacher))
    torch.testing.assert_close(ON_MAPS[name](teacher, student), ON_MAPS[name](teacher, small))


@pytest.mark.parametrize("name", ["AT", "KDSVD", "NST"])
def test_tokens_are_maps_without_the_class_token(name):
    student, teacher = torch.rand(4, 3, 4, 4), torch.rand(4, 7, 4, 4)
    tokens = torch.cat([torch.rand(4, 1, 7), teacher.flatten(2).mT], dim=1)
    torch.testing.assert_close(ON_MAPS[name](student, tokens), ON_MAPS[name](student, teacher))


def test_more_channels_than_positions_or_fewer_are_one_formula():
    s, t = torch.rand(2, 3, 2, 2, dtype=torch.float64), torch.rand(2, 9, 2, 2, dtype=torch.float64)
    doubled = [torch.cat([x, x], dim=1) for x in (s, t)]  # as many again of the same: the means stay
    torch.testing.assert_close(nst_loss(*doubled), nst_loss(s, t))


@pytest.mark.parametrize(
    ("side", "teacher_side", "answers"), [(4, 4, 4), (8, 4, 4), (4, 8, 8), (7, 2, 7), (2, 7, 2), (9, 2, 9)]
)
def test_a_hint_meets_the_teacher_at_any_size(side, teacher_side, answers):
    maps = torch.rand(4, 3, side, side), torch.rand(4, 5, teacher_side, teacher_side)
    assert regressor(*maps)(maps[0]).shape == (4, 5, answers, answers)
    outputs = [Outputs(torch.zeros(4, 2), {"-2": x}) for x in maps]
    fitnet = FitNet()
    fitnet.build(*outputs)
    assert fitnet(*outputs, None).shape == (4,)


def test_dropped_samples_enter_only_the_students_statistics():
    hint = FEATURE_SETTINGS["FitNet"].distiller
    student, teacher, target = batch(shift=4.0)
    wrong = teacher.argmax(1) != target
    assert wrong.any()
    assert not wrong.all()
    other = featured(torch.where(wrong[:, None], -5 * teacher.flip(1), teacher))
    teachers = [featured(teacher), Outputs(teacher, other.features, other.embedding)]
    was = snapshot(hint)
    results = []
    for answer in teachers:
        leaf = student.clone().requires_grad_()
        hint.load_state_dict(was)
        total = by_gamma()(hint.train(), featured(leaf), answer, target).total
        results.append((total, *torch.autograd.grad(total, [leaf, *hint.parameters()])))
    hint.load_state_dict(was)
    hint.eval()
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert (results[0][1][wrong] != 0).any()


@every_learned
def test_before_it_is_built_it_says_so(name):
    student, teacher, target = batch()
    with pytest.raises(UserError, match="not built yet: call module.rehearse"):
        LEARNED[name](featured(student), featured(teacher), target)


@every_learned
def test_what_it_learns_is_trained_between_networks_of_any_width(name, trainer):
    networks = [CIFARResNet(8, 6, 1, widths) for widths in ((4, 4, 6, 8), (3, 5, 7, 9))]
    module = DistillationModule(*networks, LEARNED[name], bias=None)
    module.rehearse(torch.randn(2, 1, 6, 6))
    before = snapshot(module.distiller)
    run = trainer(limit_val_batches=0)
    run.fit(module, TinyData())
    for key, value in module.distiller.state_dict().items():
        assert not torch.equal(before[key], value), key
    saved = module.state_dict()
    assert {f"distiller.{key}" for key in before} <= set(saved)
    trained = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert {id(p) for p in module.distiller.parameters()} <= trained


def test_singular_vectors_follow_those_of_the_teacher_in_direction_and_sign():
    student, teacher = ([feature(x, SHAPES[name]) for name in ("-3", "-2")] for x in batch()[:2])
    expected = kdsvd_loss(student, teacher, 1, "columns")
    torch.testing.assert_close(kdsvd_loss([-x for x in student], teacher, 1, "columns"), expected)
    torch.testing.assert_close(kdsvd_loss(student, [-x for x in teacher], 1, "columns"), expected)
    turned = [x.flip(1) for x in student]  # other rows first: the same right vectors
    torch.testing.assert_close(kdsvd_loss(turned, teacher, 1, "columns"), expected)
    assert (kdsvd_loss(student, teacher, 2, "columns") > 0).all()


def test_vectors_over_channels_need_as_many_of_either():
    x, wide = [torch.rand(2, 3, 4, 4)] * 2, [torch.rand(2, 5, 4, 4)] * 2
    assert kdsvd_loss(x, x, 1, "channels").shape == (2,)
    with pytest.raises(UserError, match="the student has 3, the teacher 5: set vectors to 'columns'"):
        kdsvd_loss(x, wide, 1, "channels")


def test_the_next_of_a_sample_is_the_next_kept_one():
    student, teacher = torch.rand(6, 3), torch.rand(6, 3)
    keep = torch.tensor([False, True, True, False, False, True])
    gap = (student - teacher).abs()
    first, second = gap[1] @ gap[2], gap[2] @ gap[5]
    expected = torch.stack([0 * first, first, first + second, 0 * first, 0 * first, second]) * 3 / 2 / 2
    torch.testing.assert_close(cc_loss(student, teacher, keep), expected)


def test_a_hint_is_the_mean_squared_difference():
    s, t = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(hint_loss(s, t).mean(), torch.nn.functional.mse_loss(s, t))


def test_layers_are_named_or_counted():
    assert (AT().needs.layers, SP().needs.layers, FitNet("layer2", "stage").needs.teacher_layers) == (
        ("-3", "-2", "-1"),
        ("-1",),
        ("stage",),
    )
    assert [m.needs.embedding for m in (RKD(), PKT(), CC(), NST())] == [True, True, True, False]


def test_refusals():
    with pytest.raises(ValueError, match="power must be at least 1"):
        AT(power=0.5)
    with pytest.raises(ValueError, match="variance must be above"):
        VID(variance=0.0)
    with pytest.raises(ValueError, match="dim must be at least 1"):
        CC(dim=0)
    with pytest.raises(ValueError, match="name at least two"):
        KDSVD(layers=[-1])
    with pytest.raises(ValueError, match="k must be at least 1"):
        KDSVD(k=0)
    with pytest.raises(ValueError, match="unknown vectors 'rows'"):
        KDSVD(vectors="rows")
