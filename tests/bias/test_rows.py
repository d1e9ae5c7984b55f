"""The strategy on maps equals the strategy on the labelled pixels, taken out and put into a batch."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import spawn
from settings import SETTINGS
from tiny import CompilationCount, by_gamma

from lightning_biaskd import KD, Outputs, UserError
from lightning_biaskd.bias import Plain
from lightning_biaskd.bias.rows import rows_of
from lightning_biaskd.distillers import AT, CWD, DIST, DKD, cwd_loss
from lightning_biaskd.training.step import Distillation

MODES = ("swap", "blend", "onehot", "revise", "none", "drop")
CLASSES, IGNORED = 6, 255
BY_ROWS = [name for name, setting in SETTINGS.items() if setting.distiller.dense == "rows"]
REFUSED = [name for name, setting in SETTINGS.items() if setting.distiller.dense is None]


def maps(images=2, height=3, width=4, ignored=0.3):
    target = torch.randint(CLASSES, (images, height, width))
    likely = F.one_hot(target, CLASSES).movedim(-1, 1)
    student = torch.randn(images, CLASSES, height, width, dtype=torch.float64)
    teacher = 2 * torch.randn(images, CLASSES, height, width, dtype=torch.float64) + 3 * likely
    return student, teacher, torch.where(torch.rand(target.shape) < ignored, IGNORED, target)


def pixels(student, teacher, target):
    known = target != IGNORED
    return student.movedim(1, -1)[known], teacher.movedim(1, -1)[known], target[known]


def strategy(mode, gamma=0.3, **kwargs):
    bias = by_gamma(mode, **kwargs).double()
    bias.gamma.fill_(gamma)
    return bias


def exactly(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BY_ROWS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize", ["group", "batch"])
def test_every_method_by_rows_is_the_method_on_the_labelled_pixels(name, mode, normalize):
    distiller = SETTINGS[name].distiller
    student, teacher, target = maps()
    leaves = student.clone().requires_grad_(), student.clone().requires_grad_()
    bias = strategy(mode, normalize=normalize)
    dense = bias(distiller, Outputs(leaves[0]), Outputs(teacher), target, IGNORED)
    s, t, y = pixels(leaves[1], teacher, target)
    flat = bias(distiller, Outputs(s), Outputs(t), y)
    exactly(dense[:4], flat[:4])
    gradients = [torch.autograd.grad(loss.total, leaf)[0] for loss, leaf in zip((dense, flat), leaves, strict=True)]
    exactly(*gradients)
    exactly(dense.trust[target != IGNORED], flat.trust)


def test_logit_methods_work_by_rows_or_refuse():
    assert {"KD", "DKD", "DIST", "NKD", "WSLD", "PLD", "LogitStandardization"} <= set(BY_ROWS)
    assert {"MLKD", "RKD", "SimKD", "CRD"} <= set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_compare_images_refuse_maps_in_one_line(name):
    student, teacher, target = maps()
    with pytest.raises(UserError, match="has no loss for a pixel"):
        strategy("drop")(SETTINGS[name].distiller, Outputs(student), Outputs(teacher), target, IGNORED)


@pytest.mark.parametrize("trust", ["student", "wsld", "bounded", "run", "class"])
@pytest.mark.parametrize("mode", ["none", "drop", "swap"])
def test_trust_refund_and_discount_by_rows(trust, mode):
    steps = []
    for dense in (True, False):
        torch.manual_seed(0)
        bias = strategy(mode, normalize="batch", balance="ramp", trust=trust, refund=True, label_trust="student")
        step = Distillation(
            torch.nn.Identity(), torch.nn.Identity(), DKD(), bias, ignore_index=IGNORED if dense else None
        )
        step.bias.train()
        for _ in range(3):
            student, teacher, target = maps()
            s, t, y = (student, teacher, target) if dense else pixels(student, teacher, target)
            if step.bias.running is not None and not dense:  # the memory counts images
                tally = step.bias.running.update
                step.bias.running.update = lambda counts, _=1, tally=tally: tally(counts, 12)
            result = step.step(Outputs(s), Outputs(t), y)
            if step.bias.running is not None and not dense:
                del step.bias.running.update
        steps.append(result)
    exactly(steps[0].loss, steps[1].loss)
    for name in ("train/loss_ce", "train/acc1", "bias/wrong_rate", "bias/trust"):
        torch.testing.assert_close(steps[0].logged[name], steps[1].logged[name])


@pytest.mark.parametrize(
    "bias", [None, strategy("swap"), strategy("drop", normalize="batch", balance="ramp", refund=True)]
)
@pytest.mark.parametrize("distiller", [KD(), DIST(), CWD()], ids=lambda distiller: type(distiller).__name__)
def test_a_batch_without_labels_adds_exactly_zero(bias, distiller):
    student, teacher, target = maps(ignored=1.0)
    student.requires_grad_()
    step = Distillation(torch.nn.Identity(), torch.nn.Identity(), distiller, bias, ignore_index=IGNORED)
    loss = step.step(Outputs(student), Outputs(teacher), target).loss
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_plain_distillation_is_the_mean_over_labelled_pixels():
    student, teacher, target = maps()
    s, t, y = pixels(student, teacher, target)
    loss = Plain()(KD(), Outputs(student), Outputs(teacher), target, IGNORED)
    exactly(loss.total, KD()(Outputs(s), Outputs(t), y).mean())


def test_images_without_a_label_count_nowhere():
    student, teacher, target = (x.squeeze() for x in maps(12, 1, 1))
    bias = strategy("swap")
    exactly(
        bias(KD(), Outputs(student), Outputs(teacher), target, IGNORED)[:4],
        bias(KD(), *map(Outputs, pixels(student, teacher, target)[:2]), pixels(student, teacher, target)[2])[:4],
    )


def test_the_teacher_and_the_labels_come_to_the_students_grid():
    student, teacher, target = maps(height=4, width=4)
    coarse = Outputs(F.avg_pool2d(teacher, 2))
    fine_target = target.repeat_interleave(2, 1).repeat_interleave(2, 2)
    rows = rows_of(Outputs(student), coarse, fine_target, IGNORED)
    expected = F.interpolate(coarse.logits, (4, 4), mode="bilinear", align_corners=False)
    exactly(rows.teacher.logits, expected.movedim(1, -1).flatten(0, 2))
    assert torch.equal(rows.known, (target != IGNORED).flatten())
    assert torch.equal(rows.target[rows.known], target[target != IGNORED])


def test_outputs_that_do_not_fit_are_refused_in_one_line():
    student, teacher, target = (Outputs(x) if x.is_floating_point() else x for x in maps())
    for other, labels, told in (
        (Outputs(teacher.logits[:, :5]), target, "5 classes and the student 6"),
        (Outputs(teacher.logits[:, :, 0]), target, "only maps"),
        (teacher, target[:, 0], "need integer labels of shape"),
    ):
        with pytest.raises(UserError, match=told):
            rows_of(student, other, labels, IGNORED)


def slow_cwd(student, teacher, tau):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = torch.softmax(t / tau, 0), torch.softmax(s / tau, 0)
        total += float((p * (p / q).log()).sum())
    return tau**2 * total / len(student)


@pytest.mark.parametrize("mode", ["none", "drop"])
def test_cwd_is_the_published_loss_of_the_kept_pixels_of_each_image(mode):
    student, teacher, target = maps()
    right = (teacher.argmax(1) == target) & (target != IGNORED)
    used = right if mode == "drop" else target != IGNORED
    expected = sum(
        int(used[i].sum()) * slow_cwd(student[i][:, used[i]], teacher[i][:, used[i]], 4.0) for i in range(len(student))
    )
    bias = strategy(mode, gamma=1.0, normalize="batch", balance="ramp")
    loss = bias(CWD(), Outputs(student), Outputs(teacher), target, IGNORED).total
    assert loss.item() == pytest.approx(float(expected) / int((target != IGNORED).sum()))


def test_cwd_by_position_is_never_negative_and_zero_at_the_teacher():
    student, teacher, _ = maps()
    assert (cwd_loss(student, teacher, 4.0) >= 0).all()
    assert cwd_loss(teacher, teacher, 4.0).abs().max() < 1e-15


def test_cwd_takes_corrected_maps():
    student, teacher, target = maps(ignored=0.0)
    swapped = teacher.movedim(1, -1).contiguous()
    for row, label in zip(swapped.view(-1, CLASSES), target.flatten(), strict=True):
        top = row.argmax()
        row[top], row[label] = row[label].clone(), row[top].clone()
    bias = strategy("swap", gamma=1.0, normalize="batch", balance="ramp")
    loss = bias(CWD(), Outputs(student), Outputs(teacher), target).total
    torch.testing.assert_close(loss, cwd_loss(student, swapped.movedim(-1, 1), 4.0).mean())


def test_cwd_needs_a_map():
    with pytest.raises(UserError, match="compares the positions"):
        CWD()(Outputs(torch.zeros(2, 3)), Outputs(torch.zeros(2, 3)), torch.tensor([0, 1]))


def test_features_are_dropped_below_wrong_pixels():
    student, teacher, target = maps(height=4, width=4)
    teacher[:, :, 1:] += 30 * F.one_hot(target.clamp_max(CLASSES - 1), CLASSES).movedim(-1, 1)[:, :, 1:]
    features = [{"layer": torch.randn(2, 5, 2, 2, dtype=torch.float64)} for _ in range(2)]
    wrong = (teacher.argmax(1) != target) & (target != IGNORED)
    kept = ~F.max_pool2d(wrong[:, None].double(), 2).bool()
    assert kept.any()
    assert not kept.all()
    at = AT(layers=("layer",), teacher_layers=("layer",))
    masked = [
        Outputs(z, {"layer": torch.where(kept, f["layer"], 0)})
        for z, f in zip((student, teacher), features, strict=True)
    ]
    expected = at(*masked, target).mean()
    outputs = [Outputs(z, f) for z, f in zip((student, teacher), features, strict=True)]
    rows = (target != IGNORED).flatten(1).sum(1)
    weighted = (at(*masked, target) * rows).sum() / rows.sum()
    for normalize in ("group", "batch"):
        exactly(strategy("swap", normalize=normalize)(at, *outputs, target, IGNORED).total, weighted)
    exactly(strategy("swap")(at, *outputs, teacher.argmax(1)).total, at(*outputs, target).mean())
    assert not torch.isclose(expected, at(*outputs, target).mean())


def test_it_compiles_in_one_graph_whatever_is_ignored():
    step = Distillation(
        torch.nn.Conv2d(3, CLASSES, 1),
        torch.nn.Conv2d(3, CLASSES, 1),
        DKD(),
        by_gamma("swap", "batch", "ramp", trust="run", refund=True),
        ignore_index=IGNORED,
    )
    graphs = CompilationCount()
    compiled = torch.compile(step.bias, fullgraph=True, backend=graphs)
    for share in (0.0, 0.5, 1.0):
        student, teacher, target = maps(ignored=share)
        args = DKD(), Outputs(student), Outputs(teacher), target, IGNORED
        torch.testing.assert_close(compiled(*args).total, copy.deepcopy(step.bias)(*args).total)
    assert graphs.graphs == 1


def _a_rank(rank, folder, mode, method):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    gradients = _gradient(mode, method, rank)
    torch.save(gradients, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _gradient(mode, method, rank=None):
    torch.manual_seed(0)
    student, teacher, target = maps(4, ignored=0.2)
    target[:2, 1:] = IGNORED  # the first rank has few labels
    own = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    distiller = {"KD": KD(), "DIST": DIST(), "CWD": CWD()}[method]
    bias = None if mode is None else strategy(mode, normalize="batch", balance="ramp", trust="run", refund=True)
    step = Distillation(torch.nn.Identity(), torch.nn.Identity(), distiller, bias, ignore_index=IGNORED)
    leaf = student[own].clone().requires_grad_()
    step.step(Outputs(leaf), Outputs(teacher[own]), target[own]).loss.backward()
    return leaf.grad


@pytest.mark.parametrize("mode", [None, "swap", "drop"])
@pytest.mark.parametrize("method", ["KD", "DIST", "CWD"])
def test_two_ranks_with_unequal_labels_are_one(mode, method, tmp_path):
    spawn(_a_rank, (str(tmp_path), mode, method), 2)
    both = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]) / 2  # as DDP averages
    exactly(both, _gradient(mode, method))
