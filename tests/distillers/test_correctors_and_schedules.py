"""What CTKD, MLKD, RC, RLD, SLD and WKD each do beyond the common properties."""

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from properties import batch
from settings import NEAR, SETTINGS, wkd
from tiny import CompilationCount, by_gamma

from lightning_biaskd import Distiller, Outputs, UserError, distillers
from lightning_biaskd.command_line.shipped import CONFIGS
from lightning_biaskd.distillers import CTKD, MLKD, RC, RLD, SLD, WKD, class_distances, mlkd_loss, rld_loss

LEVELS = {"temperatures": [2.0, 3.0, 4.0, 5.0, 6.0], "instance_weight": 1.0, "batch_weight": 1.0, "class_weight": 1.0}
NAMES = ("CTKD", "MLKD", "RC", "RLD", "SLD", "WKD")


@pytest.mark.parametrize("name", NAMES)
def test_compiles_once_while_the_epoch_moves(name):
    distiller = type(SETTINGS[name].distiller)()
    count = CompilationCount()
    keep = torch.arange(8) % 2 == 0
    step = torch.compile(lambda s, t, y: distiller(Outputs(s), Outputs(t), y, keep), backend=count, fullgraph=True)
    for epoch in (0, 3, 20, 149, 150, 200, 239):
        student, teacher, target = batch()
        distiller.set_epoch(epoch)
        expected = distiller(Outputs(student), Outputs(teacher), target, keep)
        torch.testing.assert_close(step(student, teacher, target), expected)
    assert count.graphs == 1


@pytest.mark.parametrize("name", NAMES)
def test_saves_nothing_that_is_a_function_of_the_epoch(name):
    assert set(type(SETTINGS[name].distiller)().state_dict()) == ({"theta"} if name == "CTKD" else set())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    distiller = type(SETTINGS[name].distiller)(**({"detach": False} if name == "SLD" else {})).double()
    student, teacher, target = batch(rows=3)
    if name == "RC":
        pytest.skip("its teacher is the detached student, which finite differences see move")
    torch.autograd.gradcheck(
        lambda s: distiller(Outputs(s), Outputs(teacher), target), student.requires_grad_(), raise_exception=True
    )


def test_ctkd_reverses_and_schedules_the_gradient():
    student, teacher, target = batch()
    gradients = {}
    for epoch in (-1, 0, 4, 9, 100):
        distiller = CTKD().double()
        distiller.set_epoch(epoch)
        distiller(Outputs(student), Outputs(teacher), target).mean().backward()
        gradients[epoch] = distiller.theta.grad
    assert gradients[-1] == 0
    torch.testing.assert_close(gradients[4], gradients[9] / 2)
    torch.testing.assert_close(gradients[100], gradients[9])

    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    tau = 1 + 20 * theta.sigmoid()
    distillers.ctkd_loss(student, teacher, tau).mean().backward()
    torch.testing.assert_close(gradients[9], -theta.grad)


def test_ctkd_is_rectified_at_the_temperature_that_it_has_learned():
    student, teacher, target = batch(shift=-10.0)
    distiller = CTKD().double()
    assert not distiller.temperature.requires_grad
    with torch.no_grad():
        distiller.theta.fill_(-1.0)
    torch.testing.assert_close(distiller.temperature.item(), 1 + 20 / (1 + torch.e))
    before = repr(distiller)
    bias = by_gamma("blend")
    bias.gamma.fill_(1.0)
    bias(distiller, Outputs(student), Outputs(teacher), target).total.backward()
    assert distiller.theta.grad.isfinite()
    assert distiller.theta.grad != 0
    assert "theta" not in before


def test_mlkd_over_kept_samples_is_mlkd_of_these():
    student, teacher, _ = batch()
    keep = torch.tensor([True, True, False, True, False, False, True, True])
    losses = mlkd_loss(student, teacher, **LEVELS, keep=keep)
    torch.testing.assert_close(losses[keep].mean(), mlkd_loss(student[keep], teacher[keep], **LEVELS).mean())


@pytest.mark.parametrize("keep", [None, torch.tensor([True, True, False, True, False, False, True, True])])
def test_mlkd_of_two_views_is_mlkd_of_each(keep):
    student, teacher, target = batch()
    half = [
        MLKD()(Outputs(student[part]), Outputs(teacher[part]), target[part], None if keep is None else keep[part])
        for part in (slice(4), slice(4, 8))
    ]
    both = MLKD(views=2)(Outputs(student), Outputs(teacher), target, keep)
    torch.testing.assert_close(both, torch.cat(half), rtol=1e-12, atol=0)
    torch.testing.assert_close(both.mean(), (half[0].mean() + half[1].mean()) / 2, rtol=1e-12, atol=0)
    assert not torch.allclose(both, MLKD()(Outputs(student), Outputs(teacher), target, keep))


def test_shipped_two_views_sum_to_the_published_loss():
    student, teacher, target = batch()
    settings = yaml.safe_load((CONFIGS / "method" / "mlkd_two_views.yaml").read_text())["model"]["init_args"]
    distiller = MLKD(**settings["distiller"]["init_args"])
    actual = settings["kd_weight"] * distiller(Outputs(student), Outputs(teacher), target).mean()
    weak = mlkd_loss(student[:4], teacher[:4], **LEVELS).mean()
    strong = mlkd_loss(student[4:], teacher[4:], **LEVELS | {"batch_weight": 0.0, "class_weight": 0.0}).mean()
    torch.testing.assert_close(actual, 0.9 * (weak / 2 + strong), rtol=1e-12, atol=0)


def test_mlkd_of_two_views_compiles_in_one_graph():
    distiller = MLKD(views=2, instance_weight=[1, 2])
    step = torch.compile(lambda s, t, y: distiller(Outputs(s), Outputs(t), y), backend="eager", fullgraph=True)
    student, teacher, target = batch()
    torch.testing.assert_close(step(student, teacher, target), distiller(Outputs(student), Outputs(teacher), target))


def test_mlkd_refuses_what_is_not_so_many_views():
    student, teacher, target = batch(rows=7)
    with pytest.raises(UserError, match="a batch of 7 does not divide into 2 views: set data.strong_view"):
        MLKD(views=2)(Outputs(student), Outputs(teacher), target)
    with pytest.raises(ValueError, match="views must be at least 1"):
        MLKD(views=0)
    with pytest.raises(ValueError, match="batch_weight must be a number or one for each of 2 views"):
        MLKD(batch_weight=[1.0, 0.0, 0.0], views=2)


def test_rld_has_nothing_to_correlate_where_the_label_is_last():
    student, teacher, _ = batch()
    losses = rld_loss(student.requires_grad_(), teacher, teacher.argmin(1), 0.0, 8.0, 4.0, 1.0)
    assert (losses == 0).all()
    losses.sum().backward()
    assert (student.grad == 0).all()


def test_sld_takes_the_student_for_a_second_teacher_from_epoch_151():
    student, teacher, target = batch()
    target = torch.where(torch.arange(8) % 2 == 0, student.argmax(1), student.argmin(1))
    distiller = SLD()
    full = distiller(Outputs(student), Outputs(teacher), target)
    losses = {}
    for epoch in (0, 149, 150, 200):
        distiller.set_epoch(epoch)
        losses[epoch] = distiller(Outputs(student), Outputs(teacher), target)
    assert torch.equal(losses[0], losses[149])
    assert torch.equal(losses[150], full)
    assert torch.equal(losses[200], full)
    right = student.argmax(1) == target
    torch.testing.assert_close(full[right], losses[0][right])
    assert (full[~right] > losses[0][~right]).all()


def test_sld_swaps_what_the_strategy_would_have_swapped():
    student, teacher, target = batch()
    losses = [by_gamma(mode)(SLD(), Outputs(student), Outputs(teacher), target) for mode in ("none", "swap")]
    torch.testing.assert_close(losses[0], losses[1])


def test_sld_detached_has_the_same_loss_and_another_gradient():
    student, teacher, target = batch()
    losses, gradients = [], []
    for detach in (True, False):
        leaf = student.clone().requires_grad_()
        loss = SLD(detach=detach)(Outputs(leaf), Outputs(teacher), target)
        loss.mean().backward()
        losses.append(loss.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(losses[0], losses[1])
    assert not torch.allclose(gradients[0], gradients[1])


def test_rc_reads_no_teacher():
    student, teacher, target = batch()
    losses = [RC()(Outputs(student), Outputs(answer), target) for answer in (teacher, -teacher)]
    assert torch.equal(*losses)


def test_wkd_with_distances_equals_the_slow_reference():
    student, teacher, target = batch(rows=20)
    distiller = WKD(torch.tensor(NEAR, dtype=torch.float64), weight=20.0, temperature=2.0)
    rows = student.tolist(), teacher.tolist(), target.tolist()
    expected = [wkd(s, t, y, NEAR, 20.0, 2.0) for s, t, y in zip(*rows, strict=True)]
    torch.testing.assert_close(
        distiller(Outputs(student), Outputs(teacher), target), torch.tensor(expected, dtype=torch.float64)
    )


def test_wkd_finds_a_near_class_cheaper_than_a_far_one():
    teacher = torch.tensor([[0.0, 9.0, 0.0, 0.0, 0.0, 0.0]])
    target = torch.tensor([0])
    distiller = WKD(NEAR, weight=1.0, temperature=1.0)
    near, far = (distiller(Outputs(teacher.roll(by, 1)), Outputs(teacher), target) for by in (1, 4))
    assert near < far


def test_wkd_reads_distances_from_files(tmp_path):
    from safetensors.torch import save_file

    matrix = class_distances(torch.randn(6, 3))
    torch.save(matrix, tmp_path / "d.pth")
    save_file({"d": matrix}, tmp_path / "d.safetensors")
    for name in ("d.pth", "d.safetensors"):
        assert torch.equal(WKD(str(tmp_path / name)).distances, matrix)
    torch.save({"d": matrix, "e": matrix}, tmp_path / "dict.pth")
    save_file({"d": matrix, "e": matrix + 1}, tmp_path / "two.safetensors")
    for name in ("dict.pth", "two.safetensors"):
        with pytest.raises(ValueError, match="must hold one tensor"):
            WKD(str(tmp_path / name))


def test_wkd_decays_its_transport():
    distiller = WKD()
    factors = []
    for epoch in (0, 149, 194, 239, 400):
        distiller.set_epoch(epoch)
        factors.append(distiller.decay.item())
    assert factors == pytest.approx([1, 1, 0.5, 0, 0], abs=1e-6)
    steady = WKD(decay_end=0)
    steady.set_epoch(400)
    assert steady.decay == 1


def test_refusals():
    for bad in (SLD, MLKD):
        for temperatures in ((), (1.0, 0.0)):
            with pytest.raises(ValueError, match="temperatures must be positive"):
                bad(temperatures)
    with pytest.raises(ValueError, match="confidence_temperature must be positive"):
        RLD(confidence_temperature=0.0)
    with pytest.raises(ValueError, match="loops must be at least 1"):
        CTKD(loops=0)
    with pytest.raises(ValueError, match="epsilon must be at least"):
        WKD(epsilon=0.001)
    with pytest.raises(ValueError, match="finite"):
        WKD([[0.0, 1.0]])
    student, teacher, target = batch(classes=5)
    with pytest.raises(ValueError, match="do not fit 5 classes"):
        WKD(NEAR)(Outputs(student), Outputs(teacher), target)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_builds_it(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model.class_path", type=str)
    parser.add_argument("--model.init_args.distiller", type=Distiller)
    parser.add_argument("--model.init_args.ce_weight", type=float)
    parser.add_argument("--model.init_args.kd_weight", type=float)
    path = Path(__file__).parents[2] / "configs" / "method" / f"{name.lower()}.yaml"
    built = parser.instantiate(parser.parse_path(path)).model.init_args.distiller
    assert name in {type(term).__name__ for term, _ in built.terms()}


def test_distances_can_be_written_in_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--distiller", type=Distiller)
    settings = {"class_path": "WKD", "init_args": {"distances": [[0.0, 1.0], [1.0, 0.0]]}}
    built = parser.instantiate(parser.parse_object({"distiller": settings})).distiller
    assert torch.equal(built.distances, 1 - torch.eye(2))
