"""Several teachers: their mean, CA-MKD's weights, the strategy on each, and their caches."""

import copy
import math
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from processes import process_group, spawn
from tiny import CLASSES, CompilationCount, TinyData, by_gamma, network
from torch import nn

from lightning_biaskd import (
    DKD,
    KD,
    ClassMap,
    DistillationModule,
    EnsembleTeacher,
    FrozenTeacher,
    InputConversion,
    InputSpec,
    Outputs,
    TeacherCache,
    UserError,
    load_weights,
)
from lightning_biaskd.__main__ import main
from lightning_biaskd.bias import Plain, partition, rectify_logits, trust
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.distillers import AT, SimKD
from lightning_biaskd.models import CIFARResNet, resnet8
from lightning_biaskd.networks.members import Members, confidence, mixture, uniform
from lightning_biaskd.training.fill_cache import fill_cache
from lightning_biaskd.training.step import Distillation

TEACHERS, SIZE = 3, 20


def answers(weights="mean", temperature=1.0):
    target = torch.randint(CLASSES, (SIZE,))
    likely = F.one_hot(target, CLASSES).unsqueeze(1)
    each = 2 * torch.randn(SIZE, TEACHERS, CLASSES, dtype=torch.float64) + likely
    members = Members(each, weights, temperature)
    student = Outputs(torch.randn(SIZE, CLASSES, dtype=torch.float64))
    return student, Outputs(mixture(each, uniform(each), temperature), members=members), target


def exactly(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def slow_confidence(row, label):
    """Equation 2 of CA-MKD, for one sample."""
    losses = [math.log(sum(math.exp(z) for z in logits)) - logits[label] for logits in row]
    total = sum(math.exp(loss) for loss in losses)
    return [(1 - math.exp(loss) / total) / (len(row) - 1) for loss in losses]


def test_the_weights_of_ca_mkd_are_its_equation():
    _, teacher, target = answers()
    expected = [
        slow_confidence(row, y) for row, y in zip(teacher.members.logits.tolist(), target.tolist(), strict=True)
    ]
    actual = confidence(teacher.members.logits, target)
    exactly(actual, torch.tensor(expected, dtype=torch.float64))
    exactly(actual.sum(1), torch.ones(SIZE, dtype=torch.float64))
    hopeless = torch.tensor([[[0.0, 1000.0], [0.0, 0.0]]])
    assert confidence(hopeless, torch.tensor([0])).tolist() == [[0.0, 1.0]]  # no overflow


@pytest.mark.parametrize("weights", ["mean", "confidence"])
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_kd_from_an_ensemble_is_the_weighted_mean_of_kd_from_each(weights, tau):
    student, teacher, target = answers(weights, tau)
    leaf = student.logits.requires_grad_()
    loss = Plain()(KD(tau), student, teacher, target).total
    shares = torch.full((SIZE, TEACHERS), 1 / TEACHERS, dtype=torch.float64)
    if weights == "confidence":
        shares = confidence(teacher.members.logits, target)
    each = torch.stack([KD(tau)(student, Outputs(teacher.members.logits[:, k]), target) for k in range(TEACHERS)], 1)
    expected = (shares * each).sum(1).mean()
    exactly(*(torch.autograd.grad(value, leaf)[0] for value in (loss, expected)))


def test_the_ensemble_is_its_networks_mean():
    networks = [network() for _ in range(TEACHERS)]
    image = torch.randn(5, 1, 6, 6)
    outputs = EnsembleTeacher(networks)(image)
    expected = torch.stack([net.eval()(image).softmax(1) for net in networks]).mean(0)
    torch.testing.assert_close(outputs.logits.softmax(1), expected)
    torch.testing.assert_close(outputs.members.logits, torch.stack([net(image) for net in networks], 1))
    assert not outputs.logits.requires_grad


@pytest.mark.parametrize("weights", ["mean", "confidence"])
@pytest.mark.parametrize("mode", ["swap", "blend", "onehot", "revise"])
@pytest.mark.parametrize("label_trust", [None, "student"])
def test_each_teacher_is_corrected_before_the_mean(weights, mode, label_trust):
    student, teacher, target = answers(weights)
    corrected = []
    for k in range(TEACHERS):
        z = teacher.members.logits[:, k]
        amount = None if label_trust is None else trust.label(student.logits, z, target)
        corrected.append(rectify_logits(z, target, mode, 2.0, amount=amount))
    shares = teacher.members.shares(target)
    p = sum(shares[:, k, None] * z.softmax(1) for k, z in enumerate(corrected))
    bias = by_gamma(mode, "batch", "ramp", label_trust=label_trust, per_teacher=True).double()
    bias.gamma.fill_(0.4)
    actual = bias(KD(2.0), student, teacher, target)
    right = partition(mixture(teacher.members.logits, shares), target)
    losses = KD(2.0)(student, Outputs(p.log()), target)
    assert 0 < right.sum() < SIZE
    exactly(actual.total, (losses * (0.4 + 0.6 * right.double())).mean())
    assert actual.wrong_rate.item() == pytest.approx((~right).float().mean().item())


@pytest.mark.parametrize("weights", ["mean", "confidence"])
def test_wrong_teachers_are_dropped_before_the_mean(weights):
    student, teacher, target = answers(weights)
    expected, kept = 0.0, 0
    rows = zip(teacher.members.logits.tolist(), target.tolist(), student.logits, strict=True)
    for each, y, s in rows:
        shares = slow_confidence(each, y) if weights == "confidence" else [1 / TEACHERS] * TEACHERS
        right = [(share, z) for share, z in zip(shares, each, strict=True) if max(z) == z[y]]
        if right:
            kept += 1
            total = sum(share for share, _ in right)
            p = sum(share / total * torch.tensor(z, dtype=torch.float64).softmax(0) for share, z in right)
            expected += 4 * F.kl_div((s / 2).log_softmax(0), (p.log() / 2).softmax(0), reduction="sum") / SIZE
    bias = by_gamma("drop", "batch", "equal", per_teacher=True).double()
    actual = bias(KD(2.0), student, teacher, target)
    assert 0 < kept < SIZE
    exactly(actual.total, expected)
    assert actual.wrong_rate.item() == pytest.approx(1 - kept / SIZE)


def experts(classes=6, dim=8):
    """Images around a centre for each class, and two teachers, each expert on half of the classes.

    An expert gives the exact posterior. On the other half it is sure of a wrong class.
    """
    generator = torch.Generator().manual_seed(0)
    centres = 1.2 * torch.randn(classes, dim, generator=generator)

    def draw(count):
        target = torch.randint(classes, (count,), generator=generator)
        return centres[target] + torch.randn(count, dim, generator=generator), target

    def posterior(image):
        return image @ centres.T - centres.square().sum(1) / 2

    def teacher(image, target, half):
        expert = (target < classes // 2) == half
        sure = 8.0 * F.one_hot((target + classes // 2) % classes, classes)
        return torch.where(expert.unsqueeze(1), posterior(image), sure)

    return draw, posterior, teacher


@pytest.mark.parametrize("mode", ["swap", "drop"])
def test_of_two_teachers_wrong_on_different_classes_each_is_corrected_better_than_the_mean(mode):
    draw, posterior, teacher = experts()
    image, target = draw(300)
    test_image, test_target = draw(4000)
    each = torch.stack([teacher(image, target, half) for half in (True, False)], 1)
    shares = torch.full(each.shape[:2], 0.5)
    ensemble = Outputs(mixture(each, shares), members=Members(each, "mean", 1.0))
    accuracies, distances = [], []
    for per_teacher in (True, False):
        student = nn.Linear(image.shape[1], each.shape[2])
        nn.init.zeros_(student.weight)
        nn.init.zeros_(student.bias)
        optimizer = torch.optim.LBFGS(student.parameters(), max_iter=100, line_search_fn="strong_wolfe")
        bias = by_gamma(mode, "batch", "equal", per_teacher=per_teacher)

        def closure(student=student, optimizer=optimizer, bias=bias):
            optimizer.zero_grad()
            loss = bias(KD(1.0), Outputs(student(image)), ensemble, target).total
            loss.backward()
            return loss

        optimizer.step(closure)
        answer = student(test_image)
        accuracies.append((answer.argmax(1) == test_target).float().mean().item())
        distances.append(F.kl_div(answer.log_softmax(1), posterior(test_image).softmax(1), reduction="batchmean"))
    assert accuracies[0] > accuracies[1] + 0.01
    assert distances[0] < 0.7 * distances[1]


@pytest.mark.parametrize("options", [{"mode": "swap", "label_trust": "run"}, {"mode": "drop"}])
def test_it_compiles_in_one_graph(options):
    count = CompilationCount()
    bias, eager = (by_gamma(normalize="batch", per_teacher=True, trust="run", **options) for _ in range(2))
    bias.compile(fullgraph=True, backend=count)
    for _ in range(3):
        student, teacher, target = answers("confidence")
        actual, expected = (each(DKD(), student, teacher, target) for each in (bias, eager))
        torch.testing.assert_close(actual.total, expected.total)
    assert count.graphs == 1


def run_rank(rank, world, folder):
    with process_group(rank, world, folder):
        total = two_steps(slice(rank * SIZE // world, (rank + 1) * SIZE // world))
        dist.all_reduce(total)
        if rank == 0:
            torch.save(total / world, f"{folder}/total.pt")


def two_steps(own):
    torch.manual_seed(3)
    bias = by_gamma("swap", trust="run", label_trust="run", per_teacher=True)
    bias.gamma.fill_(0.3)
    totals = []
    for _ in range(2):
        student, teacher, target = answers("confidence")
        members = teacher.members._replace(logits=teacher.members.logits[own])
        outputs = Outputs(student.logits[own]), Outputs(teacher.logits[own], members=members)
        totals.append(bias(KD(), *outputs, target[own]).total)
    return torch.stack(totals)


def test_two_ranks_are_one_process(tmp_path):
    spawn(run_rank, (2, str(tmp_path)), nprocs=2)
    torch.testing.assert_close(torch.load(tmp_path / "total.pt"), two_steps(slice(None)))


def test_a_fit_logs_the_mean_and_leaves_the_teachers_alone(trainer):
    networks = [network() for _ in range(2)]
    before = copy.deepcopy([net.state_dict() for net in networks])
    bias = by_gamma("swap", "batch", "equal", per_teacher=True)
    module = DistillationModule(network(), EnsembleTeacher(networks, "confidence"), bias=bias)
    fitting = trainer(max_epochs=2)
    fitting.fit(module, TinyData())
    metrics = fitting.callback_metrics
    image, target = next(iter(torch.utils.data.DataLoader(TinyData().loader.dataset, 48)))
    mean = torch.stack([net(image).softmax(1) for net in networks]).mean(0)
    assert metrics["val/teacher_acc1"].item() == pytest.approx((mean.argmax(1) == target).float().mean().item())
    for net, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    assert not [name for name in module.state_dict() if "teacher" in name]
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in network().parameters())


def net(width, seed):
    torch.manual_seed(seed)
    return CIFARResNet(8, 10, 1, (width,) * 4)


def digits():
    return DigitsDataModule(val_split=57, train_size=100, batch_size=32, views=2)


def fitted(trainer, teacher, cache=None, fill=False):
    module = DistillationModule(
        net(4, 1),
        teacher,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.001),
        teacher_cache=None if cache is None else TeacherCache(str(cache), "float32"),
    )
    if fill:
        fill_cache(module, digits())
    torch.manual_seed(2)
    trainer(max_epochs=2).fit(module, digits())
    return module


def test_each_teacher_has_its_own_cache(trainer, tmp_path):
    plain = fitted(trainer, EnsembleTeacher([net(6, 2), net(8, 3)]))
    for fill in (True, False):
        cached = fitted(trainer, EnsembleTeacher([net(6, 2), net(8, 3)]), tmp_path / "cache", fill)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(cached.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["0", "1"]
    fitted(trainer, net(8, 3), tmp_path / "cache" / "1")  # the second teacher's, as if it were alone
    with pytest.raises(UserError, match="another"):
        fitted(trainer, EnsembleTeacher([net(8, 3), net(6, 2)]), tmp_path / "cache")


def test_each_teacher_has_its_own_format_and_classes():
    first, second = network(), network()
    given, wanted = InputSpec([0.5], [0.25]), InputSpec([0.1], [0.5])
    reverse = ClassMap(list(reversed(range(CLASSES))))
    ensemble = EnsembleTeacher([first, FrozenTeacher(second, convert=InputConversion(wanted, given), classes=reverse)])
    module = DistillationModule(network(), ensemble, teacher_backend="plain")
    assert [teacher.backend for teacher in module.teacher.members] == ["plain", "plain"]
    image = torch.randn(4, 1, 6, 6)
    converted = ((image * 0.25 + 0.5) - 0.1) / 0.5
    expected = torch.stack([first.eval()(image), second.eval()(converted).flip(1)], 1)
    torch.testing.assert_close(module.teacher(image).members.logits, expected)


def test_the_command_line_builds_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = {"class_path": "lightning_biaskd.models.resnet8", "init_args": {"num_classes": 10, "in_channels": 1}}
    member = {"class_path": "FrozenTeacher", "init_args": {"model": recipe, "weights": "builtin:digits_resnet8"}}
    model = {
        "class_path": "DistillationModule",
        "init_args": {"teacher_weights": None, "bias": {"class_path": "BiasStrategy"}},
    }
    model["init_args"]["bias"]["init_args"] = {"per_teacher": True}
    model["init_args"]["teacher"] = {"class_path": "EnsembleTeacher", "init_args": {"teachers": [member, member]}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"model": model}))
    fast = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_test_batches=1"]
    main(
        [
            "fit",
            "-c",
            "configs/quickstart.yaml",
            "-c",
            "two.yaml",
            *fast,
            "--trainer.enable_progress_bar=false",
            "--trainer.accelerator=cpu",
        ]
    )
    table = re.findall(r"top-1 accuracy.*", capsys.readouterr().out)
    main(["test", *fast[2:], "--ckpt_path", "runs/quickstart/version_0/checkpoints/last.ckpt"])
    assert re.findall(r"top-1 accuracy.*", capsys.readouterr().out) == table
    image = torch.randn(3, 1, 8, 8)
    single = resnet8(10, in_channels=1)
    load_weights(single, "builtin:digits_resnet8")
    both = EnsembleTeacher([single, copy.deepcopy(single)])(image).logits
    torch.testing.assert_close(both.softmax(1), single.eval()(image).softmax(1))


def test_teachers_that_are_no_list_of_different_networks_are_refused():
    one = network()
    for teachers, told in (
        ([], "two or more"),
        ([one], "two or more"),
        ([one, FrozenTeacher(one)], "one network twice"),
        (nn.Sequential(network(), network()), "takes a list of networks"),
    ):
        with pytest.raises(UserError, match=told):
            EnsembleTeacher(teachers)
    mapped = FrozenTeacher(network(), classes=ClassMap(range(CLASSES)))
    with pytest.raises(UserError, match="one has its own classes"):
        DistillationModule(network(), EnsembleTeacher([network(), mapped]), teacher_classes=list(range(CLASSES)))
    maps = [nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 3)]
    with pytest.raises(UserError, match="they need maps of one size"):
        EnsembleTeacher(maps)(torch.zeros(1, 1, 6, 6))


@pytest.mark.parametrize("method", [AT(["0"]), SimKD()])
def test_methods_that_read_features_refuse_it(method):
    with pytest.raises(UserError, match="no features of its own: choose a method that reads logits"):
        Distillation(network(), EnsembleTeacher([network(), network()]), method)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EnsembleTeacher([network()]), "two or more single teachers"),
        (lambda: EnsembleTeacher([network(), EnsembleTeacher([network(), network()])]), "two or more single teachers"),
        (lambda: EnsembleTeacher([network(), network()], "best"), "unknown weights 'best': choose mean or confidence"),
        (lambda: EnsembleTeacher([network(), network()], temperature=0), "temperature must be positive"),
        (lambda: EnsembleTeacher([network(), network(4)])(torch.zeros(1, 1, 6, 6)), "they need the same classes"),
        (
            lambda: DistillationModule(network(), EnsembleTeacher([network(), network()]), teacher_weights="a.pt"),
            "name each as FrozenTeacher with its model and weights",
        ),
        (lambda: by_gamma("none", per_teacher=True), "mode 'none' corrects nothing"),
    ],
)
def test_mistakes_are_told_in_one_line(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("mode", ["swap", "drop"])
def test_one_teacher_cannot_be_corrected_singly(mode):
    student, teacher, target = answers()
    with pytest.raises(UserError, match="there is one teacher: leave it out"):
        by_gamma(mode, per_teacher=True)(KD(), student, Outputs(teacher.logits), target)


def maps():
    target = torch.randint(CLASSES, (2, 3, 4))
    each = torch.randn(2, TEACHERS, CLASSES, 3, 4, dtype=torch.float64)
    shares = torch.full((2, TEACHERS), 1 / TEACHERS, dtype=torch.float64)
    return Outputs(torch.randn(2, CLASSES, 3, 4, dtype=torch.float64)), each, shares, target


@pytest.mark.parametrize("mode", ["swap", "drop"])
def test_pixels_of_several_teachers_are_rows(mode):
    student, each, shares, target = maps()
    target[0, 0] = 255
    known = target != 255
    teacher = Outputs(mixture(each, shares), members=Members(each, "mean", 1.0))
    bias = by_gamma(mode, "batch", "equal", per_teacher=True).double()
    dense = bias(KD(), student, teacher, target, 255)
    rows = each.movedim((1, 2), (-2, -1))[known]
    flat_teacher = Outputs(teacher.logits.movedim(1, -1)[known], members=Members(rows, "mean", 1.0))
    flat = bias(KD(), Outputs(student.logits.movedim(1, -1)[known]), flat_teacher, target[known])
    exactly(dense.total, flat.total)


def test_maps_that_do_not_fit_are_refused():
    student, each, shares, target = maps()
    teacher = Outputs(mixture(each, shares), members=Members(each, "confidence", 1.0))
    with pytest.raises(UserError, match="for images, not for maps: choose mean"):
        Plain()(KD(), student, teacher, target)
    with pytest.raises(UserError, match="give both networks the same"):
        Plain()(KD(), Outputs(student.logits[..., :2]), teacher, target)
