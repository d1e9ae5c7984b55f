"""What methods with projectors do in training, and on maps of any size."""

import copy

import pytest
import torch
import torch.nn.functional as F
from connector_settings import CONNECTOR_SETTINGS
from projector_settings import IMAGES, PROJECTOR_SETTINGS, projected
from properties import batch, trained
from torch import nn

from lightning_biaskd import Outputs, UserError, WeightedSum
from lightning_biaskd.distillers import (
    CATKD,
    CRD,
    ITRD,
    MGD,
    NORM,
    OFD,
    SRD,
    DiffKD,
    ReviewKD,
    SimKD,
    VkD,
    WKDFeature,
    ofd_loss,
    wkd_feature_loss,
)
from lightning_biaskd.distillers.ofd import negative_mean
from lightning_biaskd.distillers.wkd_feature import moments

SETTINGS = {**PROJECTOR_SETTINGS, **CONNECTOR_SETTINGS}
every_method = pytest.mark.parametrize("name", SETTINGS)
LEARNING = [CRD(), DiffKD(), ITRD(), MGD(), NORM(), OFD(), ReviewKD(), SimKD(), SRD(), VkD(), WKDFeature()]


def in_training(name):
    return copy.deepcopy(SETTINGS[name].distiller).train()


def gradients(distiller, student, teacher, target, keep=None):
    leaf = student.clone().requires_grad_()
    losses = distiller(projected(leaf), projected(teacher), target, keep)
    kept = losses if keep is None else torch.where(keep, losses, 0)
    return [kept.detach(), *torch.autograd.grad(kept.sum(), [leaf, *trained(distiller)])]


@every_method
def test_in_training_a_dropped_teacher_is_not_used(name):
    student, teacher, target = batch()
    keep = torch.tensor([True, False] * 4)
    other = torch.where(keep[:, None], teacher, -5 * teacher.flip(1))
    first, second = (gradients(in_training(name), student, rows, target, keep) for rows in (teacher, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert all(gradient.any() for gradient in first)


@every_method
@pytest.mark.parametrize("rows", [8, 1])
def test_in_training_a_batch_of_dropped_samples_adds_exactly_nothing(name, rows):
    student, teacher, target = batch(rows)
    dropped = gradients(in_training(name), student, teacher, target, torch.zeros(rows, dtype=torch.bool))
    assert all(value.isfinite().all() and not value.any() for value in dropped)


@every_method
def test_in_training_one_sample_is_enough(name):
    student, teacher, target = batch(1)
    distiller = in_training(name)
    values = gradients(distiller, student, teacher, target)
    assert all(value.isfinite().all() for value in values)
    assert all(value.isfinite().all() for value in distiller.state_dict().values())
    assert bool(values[0].any()) == (name not in ("SRD", "ITRD"))  # which compare each with the batch


@every_method
def test_weights_of_half_precision_take_features_of_full(name):
    student, teacher, target = batch()
    distiller = in_training(name).bfloat16()
    losses = distiller(projected(student.float()), projected(teacher.float()), target)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


@pytest.mark.parametrize("distiller", LEARNING, ids=lambda distiller: type(distiller).__name__)
def test_before_it_is_built_it_is_one_line(distiller):
    student, teacher, target = batch()
    with pytest.raises(UserError, match="the method is not built yet"):
        distiller(projected(student), projected(teacher), target)
    assert not list(distiller.parameters())


@pytest.mark.parametrize("distiller", LEARNING, ids=lambda distiller: type(distiller).__name__)
def test_it_is_built_where_and_as_the_features_are(distiller):
    student, teacher, _ = batch()
    for dtype in (torch.float32, torch.float64):
        built = copy.deepcopy(distiller)
        built.build(projected(student.to(dtype)), projected(teacher.to(dtype)), IMAGES)
        assert {p.dtype for p in trained(built)} == {dtype}


def outputs(embedding=(7,), **shapes):
    """Of random features, by layer: ``a`` for -1, ``b`` for -2."""
    names = {"a": "-1", "b": "-2", "a_pre": "-1:pre", "b_pre": "-2:pre"}
    features = {names[key]: torch.randn(3, *shape) for key, shape in shapes.items()}
    return Outputs(torch.randn(3, 6), features, torch.randn(3, *embedding))


@pytest.mark.parametrize(
    ("distiller", "student", "teacher"),
    [
        (OFD([-2, -1]), {"b_pre": (3, 9, 7), "a_pre": (4, 5, 3)}, {"b_pre": (5, 6, 6), "a_pre": (6, 8, 8)}),
        (ReviewKD([-2, -1]), {"b": (3, 9, 7), "a": (4, 5, 3)}, {"b_pre": (5, 6, 6), "a_pre": (6, 8, 2)}),
        (ReviewKD([-2, -1]), {"b": (3, 9, 7), "a": (4, 5, 3)}, {"b_pre": (17, 6), "a_pre": (17, 6)}),
        (VkD(), {"a": (3, 7, 5)}, {"a": (50, 6)}),
        (VkD(), {"a": (17, 8)}, {"a": (6, 4, 4)}),
        (WKDFeature(), {"a": (3, 7, 5)}, {"a": (50, 6)}),
        (WKDFeature(grid=4), {"a": (3, 2, 2)}, {"a": (5, 8, 8)}),
        (WKDFeature(), {"a": (3, 4, 4)}, {"a": (5, 2, 2)}),
    ],
)
def test_maps_and_tokens_of_any_size(distiller, student, teacher):
    student, teacher = outputs(**student), outputs((9,), **teacher)
    distiller.build(student, teacher)
    losses = distiller(student, teacher, torch.zeros(3, dtype=torch.long))
    assert losses.shape == (3,)
    assert losses.isfinite().all()
    assert all(gradient.any() for gradient in torch.autograd.grad(losses.sum(), list(distiller.parameters())))


def test_margins_are_measured_at_the_rehearsal():
    feature = torch.randn(6, 4, 5, 5)
    feature[:, 2] = feature[:, 2].abs()
    expected = [
        channel[channel < 0].mean().item() if (channel < 0).any() else 0.0 for channel in feature.transpose(0, 1)
    ]
    torch.testing.assert_close(negative_mean(feature), torch.tensor(expected))
    student, teacher = outputs(a_pre=(3, 5, 5)), Outputs(torch.zeros(6, 6), {"-1:pre": feature})
    distiller = OFD([-1])
    distiller.build(student, teacher)
    torch.testing.assert_close(distiller.state_dict()["connectors.0.margin"], torch.tensor(expected))


def test_ofd_lets_the_student_be_as_negative_as_it_likes():
    teacher, margin = torch.full((1, 1, 1, 1), -3.0), torch.tensor([-1.0])
    student = torch.linspace(-6, 2, 9)
    losses = torch.cat([ofd_loss(value.view(1, 1, 1, 1), teacher, margin) for value in student])
    torch.testing.assert_close(losses, (student + 1).relu() ** 2)


def test_review_kd_takes_the_teacher_before_the_activation_and_the_student_if_asked():
    assert ReviewKD((-2, "x")).needs.layers == ("-2", "x")
    assert ReviewKD((-2, "x")).needs.teacher_layers == ("-2:pre", "x:pre")
    method = ReviewKD((-1,), ("y",), preactivation=True)
    assert (method.needs.layers, method.needs.teacher_layers) == (("-1:pre",), ("y:pre",))


def test_review_kd_warms_up():
    student, teacher, target = batch()
    method = copy.deepcopy(PROJECTOR_SETTINGS["ReviewKD"].distiller)
    full = method(projected(student), projected(teacher), target)
    for epoch, factor in ((0, 1 / 20), (9, 0.5), (19, 1.0), (99, 1.0)):
        method.set_epoch(epoch)
        warmed = WeightedSum([(method, 1.0)])(projected(student), projected(teacher), target)
        torch.testing.assert_close(warmed, factor * full)


def test_the_weight_of_wkd_feature_falls():
    student, teacher, target = batch()
    method = copy.deepcopy(PROJECTOR_SETTINGS["WKDFeature"].distiller)
    full = method(projected(student), projected(teacher), target)
    for epoch, factor in ((0, 1.0), (149, 1.0), (194, 0.5), (239, 0.0), (300, 0.0)):
        method.set_epoch(epoch)
        torch.testing.assert_close(method(projected(student), projected(teacher), target), factor * full)


def test_moments_of_a_grid_are_those_of_its_cells():
    feature = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    mean, deviation = moments(feature, 2)
    torch.testing.assert_close(mean, F.adaptive_avg_pool2d(feature, 2).flatten(2))
    torch.testing.assert_close(deviation[:, :, 3], (feature[:, :, 3:, 2:].flatten(2).var(2) + 1e-5).sqrt())
    single = moments(feature[:, :, :2, :2], 2)[1]
    torch.testing.assert_close(single, torch.full_like(single, 1e-5**0.5))


def test_wkd_feature_is_the_distance_of_gaussians():
    """Of diagonal covariances: |μ - μ'|² + |σ - σ'|², here of samples that have them exactly."""
    spread = torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1) / 2**0.5  # unbiased variance 1
    student, teacher = 3 * spread + 1.0, 5 * spread + 4.0
    torch.testing.assert_close(
        wkd_feature_loss(student, teacher, mean_weight=2.0, grid=1), torch.tensor([2 * 9.0 + 4.0]), rtol=1e-4, atol=0
    )


def test_cat_kd_needs_linear_classifiers_that_read_the_average():
    logits, _, target = batch()
    good = projected(logits)
    with pytest.raises(UserError, match="CATKD needs the weights of a linear classifier, and got Conv2d"):
        CATKD()(good._replace(head=nn.Conv2d(5, 6, 1)), good, target)
    with pytest.raises(UserError, match="CATKD: the classifier does not read the average of layer '-1'"):
        CATKD().build(good, good._replace(embedding=good.embedding[:, :3]))
    CATKD().build(good, good)
    leaf = copy.deepcopy(good.head).requires_grad_()
    CATKD()(good._replace(head=leaf), projected(logits.flip(1)), target).sum().backward()
    assert leaf.weight.grad.any()
    assert leaf.bias.grad is None


@pytest.mark.parametrize("name", ["SRD", "ITRD"])
def test_a_loss_over_the_batch_of_kept_samples_is_that_of_them_alone(name):
    student, teacher, target = batch()
    keep = torch.tensor([True, True, False, True, False, True, True, False])
    method = {**PROJECTOR_SETTINGS, **CONNECTOR_SETTINGS}[name].distiller
    losses = method(projected(student), projected(teacher), target, keep)
    alone = method(projected(student[keep]), projected(teacher[keep]), target[keep])
    torch.testing.assert_close(losses[keep], alone)
    assert not losses[~keep].any()


def test_refusals():
    with pytest.raises(ValueError, match="exponent must be at least 1"):
        SRD(0.5)
    with pytest.raises(ValueError, match="grid must be at least 1"):
        WKDFeature(grid=0)
