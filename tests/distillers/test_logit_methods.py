"""What ABKD, LumiNet, OFA and TeKAP do beyond the common properties."""

import copy

import pytest
import torch
import torch.nn.functional as F
from logit_settings import indexed
from properties import batch

from lightning_biaskd import Outputs, UserError
from lightning_biaskd.distillers import ABKD, OFA, PLD, LumiNet, TeKAP, abkd_loss, kd_loss, luminet_loss, ofa_loss
from lightning_biaskd.networks.outputs import with_index
from lightning_biaskd.randomness.bits import normal, random_bits
from lightning_biaskd.randomness.draws import Draws


def test_abkd_is_a_divergence_between_both_kinds_of_kl():
    student, teacher, _ = batch()
    torch.testing.assert_close(16 * abkd_loss(student, teacher, 1.0, 0.0, 4.0), kd_loss(student, teacher, 4.0))
    torch.testing.assert_close(16 * abkd_loss(student, teacher, 0.0, 1.0, 4.0), kd_loss(teacher, student, 4.0))


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.0), (0.0, 0.7), (2.0, 0.0)])
def test_abkd_with_a_zero_is_the_limit(alpha, beta):
    student, teacher, _ = batch()
    near = abkd_loss(student, teacher, alpha or 1e-6, beta or 1e-6, 2.0)
    torch.testing.assert_close(abkd_loss(student, teacher, alpha, beta, 2.0), near, rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", [ABKD(), PLD()])
def test_it_is_finite_where_a_teacher_excludes_a_class(method):
    student = torch.randn(2, 4, requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, -torch.inf, 2.0], [0.0, 1.0, -1e30, 2.0]])
    loss = method(Outputs(student), Outputs(teacher), torch.tensor([3, 2]))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_luminet_asks_neither_for_the_scale_nor_for_the_mean_of_a_class():
    student, teacher, _ = batch(rows=32)
    scale, shift = torch.rand(6, dtype=torch.float64) + 1, torch.randn(6, dtype=torch.float64)
    expected = luminet_loss(student, teacher, 1.0, 4.0)
    torch.testing.assert_close(luminet_loss(scale * student + shift, teacher, 1.0, 4.0), expected, rtol=1e-3, atol=0)
    assert luminet_loss(scale * teacher + shift, teacher, 1.0, 4.0).max() < 1e-9


def test_luminet_of_kept_samples_is_luminet_of_them_alone():
    student, teacher, target = batch()
    keep = torch.tensor([True, True, False, True, False, True, True, False])
    losses = LumiNet()(Outputs(student), Outputs(teacher), target, keep)
    alone = LumiNet()(Outputs(student[keep]), Outputs(teacher[keep]), target[keep])
    torch.testing.assert_close(losses[keep], alone)
    assert not losses[~keep].any()


@pytest.mark.parametrize("keep", [torch.zeros(8, dtype=torch.bool), torch.arange(8) == 3, None])
def test_luminet_of_a_single_sample_or_of_none_is_exactly_zero(keep):
    student, teacher, target = batch(rows=1 if keep is None else 8)
    student.requires_grad_()
    losses = LumiNet()(Outputs(student), Outputs(teacher), target, keep)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    assert not losses.any()
    assert not gradient.any()


def test_ofa_with_exponent_one_is_the_cross_entropy_with_the_teacher():
    student, teacher, target = batch()
    expected = F.cross_entropy(student / 2, (teacher / 2).softmax(1), reduction="none")
    torch.testing.assert_close(ofa_loss(student, teacher, target, 1.0, 2.0), expected)


def test_ofa_gives_the_label_more_weight_the_surer_the_teacher_is():
    student, target = torch.zeros(3, 4, requires_grad=True), torch.tensor([1, 1, 1])
    teacher = F.one_hot(target, 4) * torch.tensor([[0.0], [2.0], [5.0]])
    (gradient,) = torch.autograd.grad(ofa_loss(student, teacher, target, 1.5, 1.0).sum(), student)
    assert (gradient[:, 1].diff() < 0).all()


def noise_of(method, index):
    """The noise in the first copy of a teacher whose logits are all zero."""
    return normal(method.draws(index, method.copies * 3)).view(-1, method.copies, 3)[:, 0]


def test_the_noise_is_a_function_of_seed_epoch_and_image():
    torch.manual_seed(5)
    method, index = TeKAP(), torch.tensor([4, 0, 4])
    first = noise_of(method, index)
    torch.testing.assert_close(first[0], first[2], rtol=0, atol=0)
    assert (first[0] != first[1]).all()
    torch.testing.assert_close(noise_of(method, index.flip(0)[:2]), first[[2, 1]], rtol=0, atol=0)
    method.set_epoch(1)
    assert (noise_of(method, index) != first).all()
    torch.manual_seed(6)
    other = TeKAP()
    assert (noise_of(other, index) != first).all()
    other.load_state_dict(method.state_dict())  # a resumed run, made with another seed
    torch.testing.assert_close(noise_of(other, index), first, rtol=0, atol=0)
    before = torch.get_rng_state()
    TeKAP()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_noise_is_normal():
    draws = normal(Draws()(torch.arange(1000), 100))
    assert abs(draws.mean()) < 0.01
    assert abs(draws.var() - 1) < 0.02
    assert abs((draws.abs() < 1).float().mean() - 0.6827) < 0.005
    assert draws.isfinite().all()
    extremes = normal(torch.tensor([0, 2**63 - 1]))
    torch.testing.assert_close(extremes, torch.tensor([-5.42, 5.42]), rtol=0.01, atol=0)


def test_a_seed_in_a_tensor_draws_as_a_number_does():
    index = torch.arange(5)
    assert torch.equal(random_bits(torch.tensor(3), torch.tensor(2), index), random_bits(3, 2, index))


def test_tekap_without_noise_is_kd_several_times():
    student, teacher, target = batch()
    outputs = indexed(student), Outputs(teacher), target
    expected = (1 + 2 * 0.5) * kd_loss(student, teacher, 4.0)
    torch.testing.assert_close(TeKAP(copies=2, weight=0.5, share=0.0)(*outputs), expected)


def test_tekap_tells_that_it_needs_indices():
    student, teacher, target = batch()
    with pytest.raises(UserError, match=r"needs its index: call distillation.*with_index"):
        TeKAP()(Outputs(student), Outputs(teacher), target)
    TeKAP()(with_index(Outputs(student), torch.arange(8)), Outputs(teacher), target)


def test_tekap_moves_with_its_module():
    student, teacher, target = batch()
    method = copy.deepcopy(TeKAP()).double().half()
    assert (method.draws.seed.dtype, method.draws.epoch.dtype) == (torch.int64, torch.int64)
    assert method(indexed(student.half()), Outputs(teacher.half()), target).dtype == torch.float32


def test_refusals():
    with pytest.raises(ValueError, match="alpha and beta must not be negative, and one positive"):
        ABKD(alpha=0.0, beta=0.0)
    with pytest.raises(ValueError, match="alpha and beta must not be negative"):
        ABKD(alpha=-1.0)
    with pytest.raises(ValueError, match="exponent must be positive"):
        OFA(exponent=0.0)
    with pytest.raises(ValueError, match="copies must be at least 1 and share in"):
        TeKAP(copies=0)
