"""What ITRD, MGD and VkD do beyond the common properties."""

import copy

import pytest
import torch
from connector_settings import CONNECTOR_SETTINGS
from projector_settings import projected
from properties import batch

from lightning_biaskd import Outputs, UserError
from lightning_biaskd.distillers import ITRD, MGD, VkD, correlation_loss, mutual_loss, vkd_loss
from lightning_biaskd.distillers.vkd import OrthogonalProjection
from lightning_biaskd.networks.outputs import with_index


def masks_of(method, index):
    """The channels that are seen: a generator that hands on what it gets shows them in its loss."""
    method.connectors[-1] = torch.nn.Identity()
    outputs = with_index(Outputs(torch.zeros(len(index), 3), {"-1": torch.ones(len(index), 400, 1, 1)}), index)
    target = Outputs(torch.zeros(len(index), 3), {"-1": torch.zeros(len(index), 400, 1, 1)})
    return method(outputs, target, torch.zeros(len(index), dtype=torch.long))


def test_mgd_hides_the_same_channels_of_an_image_in_an_epoch():
    features = Outputs(torch.zeros(2, 3), {"-1": torch.ones(2, 400, 1, 1)})
    method, index = MGD(masked=0.5), torch.tensor([4, 0, 4])
    method.build(features, features)
    first = masks_of(method, index)
    assert first[0] == first[2]
    assert ((first - 200).abs() < 60).all()
    method.set_epoch(1)
    assert (masks_of(method, index) != first).any()
    method.set_epoch(0)
    assert torch.equal(masks_of(method, index), first)
    method.masked = 0.0
    assert (masks_of(method, index) == 400).all()


def test_mgd_tells_that_it_needs_indices():
    student, teacher, target = batch()
    method = copy.deepcopy(CONNECTOR_SETTINGS["MGD"].distiller)
    with pytest.raises(UserError, match="needs its index"):
        method(projected(student)._replace(index=None), projected(teacher), target)


def test_mgd_needs_no_alignment_of_equal_widths():
    student, teacher, _ = batch()
    method = MGD()
    method.build(projected(student), projected(teacher))
    assert len(method.connectors) == 1


@pytest.mark.parametrize(("into", "out"), [(3, 7), (7, 3), (4, 4), (1, 5)])
def test_the_projection_is_orthogonal_and_stays_so(into, out):
    projection = OrthogonalProjection(into, out).double()
    optimizer = torch.optim.SGD(projection.parameters(), 0.1, weight_decay=0.1)
    before = projection(torch.eye(into).double()).detach()
    for _ in range(3):
        matrix = projection(torch.eye(into).double())
        gram = matrix @ matrix.T if into <= out else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(min(into, out)).double())
        (matrix[:, 0] - 1).square().sum().backward()
        optimizer.step()
    assert (projection(torch.eye(into).double()) - before).abs().max() > 1e-3


def test_the_projection_is_exact_under_autocast():
    x, projection = torch.randn(4, 16), OrthogonalProjection(16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(projection(x).norm(dim=1), x.norm(dim=1))


def test_vkd_ignores_scale_and_shift_of_the_teacher():
    student, teacher, _ = batch(classes=50)
    torch.testing.assert_close(vkd_loss(student, 7 * teacher + 3), vkd_loss(student, teacher), rtol=1e-4, atol=0)


def test_a_dimension_without_variance_is_uncorrelated():
    student, teacher, _ = batch()
    teacher[:, 2] = 0.7
    student.requires_grad_()
    losses = correlation_loss(student, teacher, 1.0)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    rho = torch.stack([torch.corrcoef(torch.stack([s, t]))[0, 1] for s, t in zip(student.T, teacher.T, strict=True)])
    rho[2] = 0.0
    torch.testing.assert_close(losses[0], (1 - 7 / 8 * rho).square().sum().log2())
    assert gradient.isfinite().all()
    assert not gradient[:, 2].any()


def test_embeddings_of_different_sizes_are_compared_by_the_learned_map():
    student, teacher, target = batch()
    outputs = Outputs(student, embedding=student), Outputs(teacher, embedding=torch.cat([teacher, teacher.cos()], 1))
    method = ITRD(correlation_weight=0.0)
    method.build(*outputs)
    expected = mutual_loss(method.connectors[0](student), outputs[1].embedding)
    torch.testing.assert_close(method(*outputs, target), expected)


def test_refusals():
    with pytest.raises(ValueError, match="masked must be in"):
        MGD(masked=1.0)
    with pytest.raises(ValueError, match="alpha must be positive"):
        ITRD(alpha=0.0)
    with pytest.raises(UserError, match="neither a map"):
        VkD().build(*[Outputs(torch.zeros(2, 3), {"-1": torch.zeros(2, 5)})] * 2)
