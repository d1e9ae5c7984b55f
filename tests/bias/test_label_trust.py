"""Trust in labels that contradict the teacher: against a slow reference, over ranks, compiled, resumed, and its use."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import process_group, spawn
from tiny import CLASSES, CompilationCount, by_gamma

from lightning_biaskd import KD, BiasStrategy, Outputs, UserError
from lightning_biaskd.bias import partition, rectify, rectify_logits, running_trust, trust
from lightning_biaskd.training.step import Distillation

MODES = ("swap", "blend", "onehot", "revise")
STEPS, SIZE = 6, 24


def batches():
    """Students that often agree with a teacher which is often wrong."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        target = torch.randint(CLASSES, (SIZE,), generator=generator)
        teacher = 2 * torch.randn(SIZE, CLASSES, generator=generator)
        student = torch.randn(SIZE, CLASSES, generator=generator) + 0.5 * teacher + F.one_hot(target, CLASSES)
        yield student.double(), teacher.double(), target


def strategy(form, mode="swap", **options):
    bias = by_gamma(mode, "batch", "equal", label_trust=form, **options).double()
    if form == "run":
        bias.running_labels.width = 0.5  # so wide that no trust is cut off at 0 or 1
    return bias


@pytest.mark.parametrize("mode", MODES)
def test_an_amount_lies_between_the_answer_and_its_correction(mode):
    _, teacher, target = next(batches())
    amount = torch.linspace(0, 1, SIZE, dtype=torch.float64)
    c = amount.unsqueeze(1)
    p = teacher.softmax(1)
    expected = (1 - c) * p + c * rectify(p, target, mode)
    torch.testing.assert_close(rectify(p, target, mode, amount=amount), expected)
    mixed = rectify_logits(teacher, target, mode, 4.0, amount=amount)
    p = (teacher / 4).softmax(1)
    torch.testing.assert_close((mixed / 4).softmax(1), (1 - c) * p + c * rectify(p, target, mode))
    raw = rectify_logits(teacher, target, mode, 4.0, "logits", amount=amount)
    torch.testing.assert_close(raw, (1 - c) * teacher + c * rectify_logits(teacher, target, mode, 4.0, "logits"))
    right = partition(teacher, target)
    assert 0 < right.sum() < SIZE
    assert torch.equal(mixed[right], teacher[right])
    assert torch.equal(raw[right], teacher[right])


def test_it_is_the_students_preference():
    for student, teacher, target in batches():
        expected = []
        for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
            answer = max(range(CLASSES), key=t.__getitem__)
            expected.append(math.exp(s[y]) / (math.exp(s[y]) + math.exp(s[answer])))
        student.requires_grad_()
        actual = trust.label(student, teacher, target)
        assert not actual.requires_grad
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


def slow_run(memory, width):
    """How often the student said the label or the answer where they differ, each with the weight that is left to it."""
    history, trusts = [], []
    for student, teacher, target in batches():
        answer = teacher.argmax(1)
        new = [
            (float(s == y) - float(s == a))
            for s, a, y in zip(student.argmax(1).tolist(), answer.tolist(), target.tolist(), strict=True)
            if a != y
        ]
        history = [(max(0.0, 1 - len(new) / memory) * weight, gain) for weight, gain in history]
        history += [(1.0, gain) for gain in new]
        mean = sum(weight * gain for weight, gain in history) / sum(weight for weight, _ in history)
        trusts.append(min(max(mean / width + 0.5, 0.0), 1.0))
    return trusts


def test_running_trust_is_the_slow_count(monkeypatch):
    monkeypatch.setattr(running_trust, "MEMORY", 60)
    bias = strategy("run")
    trusts = [bias(KD(), Outputs(s), Outputs(t), y).label_trust.item() for s, t, y in batches()]
    assert len(set(trusts)) == STEPS
    assert trusts == pytest.approx(slow_run(60, 0.5), abs=1e-5)
    assert bias.running is None


@pytest.mark.parametrize("form", ["student", "run"])
@pytest.mark.parametrize("mode", MODES)
def test_the_loss_is_that_of_partly_corrected_answers(form, mode):
    bias = strategy(form, mode)
    for student, teacher, target in batches():
        loss = bias(KD(2.0), Outputs(student), Outputs(teacher), target)
        wrong = ~partition(teacher, target)
        c = trust.label(student, teacher, target)
        if form == "run":
            c = bias.running_labels(target).double()
        torch.testing.assert_close(loss.label_trust, c[wrong].mean())
        p = rectify((teacher / 2).softmax(1), target, mode, amount=c)
        expected = 4 * F.kl_div((student / 2).log_softmax(1), p, reduction="batchmean")
        torch.testing.assert_close(loss.total, expected)
        assert bias.logged(loss)["bias/label_trust"] is loss.label_trust


@pytest.mark.parametrize(("discount", "refund"), [(0.0, False), (0.4, False), (1.0, True)])
@pytest.mark.parametrize("teacher_trust", [None, "student"])
def test_the_discounted_loss_is_its_sum_over_samples(discount, refund, teacher_trust):
    bias = strategy("student", trust=teacher_trust, discount=discount, refund=refund)
    step = Distillation(torch.nn.Identity(), torch.nn.Identity(), KD(2.0), bias, ce_weight=0.4, kd_weight=0.7).double()
    for s, t, y in batches():
        s.requires_grad_()
        c = trust.label(s, t, y)
        p = rectify((t / 2).softmax(1), y, "swap", amount=c)
        expected = 0.0
        for n in range(SIZE):
            row = slice(n, n + 1)
            a = 1.0 if teacher_trust is None else trust.student(s[row], t[row], y[row]).item()
            lost = discount * a * (1 - c[n].item()) if t[n].argmax() != y[n] else 0.0
            weight = 0.4 * (1 - lost) + (0.7 * (1 - a) if refund else 0.0)
            kd = 4 * F.kl_div((s[n] / 2).log_softmax(0), p[n], reduction="sum")
            expected = expected + (weight * F.cross_entropy(s[row], y[row]) + 0.7 * a * kd) / SIZE
        loss = step.step(Outputs(s), Outputs(t), y).loss
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (loss, expected)), rtol=1e-9, atol=1e-12)


def test_a_teacher_that_the_student_has_overtaken_discounts_nothing():
    student, teacher, target = next(batches())
    bias = strategy("student", trust="run")
    bias.running.counts.copy_(torch.tensor([[3000.0], [1000.0], [2000.0]]))
    discount = bias.eval()(KD(), Outputs(student), Outputs(teacher), target).discount
    assert not discount.any()


@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan])
def test_a_discount_that_is_no_share_is_refused(discount):
    with pytest.raises(UserError, match="must be in"):
        BiasStrategy(discount=discount)


def test_labels_that_the_student_never_gives_leave_the_teacher_as_it_is():
    """Two labels in five are wrong, the teacher is right, and the student learns from it."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(CLASSES, (200,), generator=generator)
    noisy = torch.where(torch.rand(200, generator=generator) < 0.4, (truth + 1) % CLASSES, truth)
    answers = 3.0 * F.one_hot(truth, CLASSES)
    bias = by_gamma("swap", "batch", "equal", label_trust="run")
    plain = KD()(Outputs(0.5 * answers), Outputs(answers), noisy).mean()
    torch.testing.assert_close(bias(KD(), Outputs(0.5 * answers), Outputs(answers), noisy).total, plain)
    corrected = by_gamma("swap", "batch", "equal")(KD(), Outputs(0.5 * answers), Outputs(answers), noisy).total
    assert corrected > 1.2 * plain


def test_labels_that_the_student_gives_correct_the_teacher_in_full():
    truth = torch.arange(200) % CLASSES
    answers = 3.0 * F.one_hot(torch.where(torch.arange(200) < 80, (truth + 1) % CLASSES, truth), CLASSES)
    student = Outputs(0.5 * F.one_hot(truth, CLASSES))
    losses = [
        by_gamma("swap", "batch", "equal", label_trust=form)(KD(), student, Outputs(answers), truth).total
        for form in ("run", None)
    ]
    assert torch.equal(*losses)


@pytest.mark.parametrize("mode", ["none", "drop"])
def test_where_nothing_is_corrected_it_has_no_effect(mode):
    bias, plain = (BiasStrategy(mode, trust=None, label_trust=form) for form in ("run", None))
    student, teacher, target = next(batches())
    losses = [each(KD(), Outputs(student), Outputs(teacher), target) for each in (bias, plain)]
    assert torch.equal(losses[0].total, losses[1].total)
    assert losses[0].label_trust is None
    assert not bias.state_dict()


def test_an_unknown_word_is_refused():
    with pytest.raises(UserError, match="unknown label_trust 'class': choose student, run, None"):
        BiasStrategy("swap", label_trust="class")


def test_counts_are_resumed_and_evaluation_adds_none():
    bias = strategy("run", trust="run")
    for student, teacher, target in batches():
        bias(KD(), Outputs(student), Outputs(teacher), target)
    fresh = strategy("run", trust="run")
    fresh.load_state_dict(bias.state_dict())
    student, teacher, target = next(batches())
    before = copy.deepcopy(bias.state_dict())
    loss = bias.eval()(KD(), Outputs(student), Outputs(teacher), target)
    assert all(torch.equal(before[key], value) for key, value in bias.state_dict().items())
    resumed = fresh.eval()(KD(), Outputs(student), Outputs(teacher), target)
    assert torch.equal(loss.total, resumed.total)
    assert torch.equal(loss.label_trust, resumed.label_trust)


@pytest.mark.parametrize("form", ["student", "run"])
def test_it_compiles_in_one_graph(form):
    count = CompilationCount()
    bias, eager = (strategy(form, trust="run") for _ in range(2))
    torch._dynamo.reset()
    bias.compile(fullgraph=True, backend=count)
    for student, teacher, target in batches():
        compiled, expected = (each(KD(), Outputs(student), Outputs(teacher), target) for each in (bias, eager))
        torch.testing.assert_close(compiled.total, expected.total)
        torch.testing.assert_close(compiled.label_trust, expected.label_trust)
        torch.testing.assert_close(compiled.discount, expected.discount)
    assert count.graphs == 1


def run_rank(rank, world, folder):
    with process_group(rank, world, folder):
        results = {}
        for form in ("student", "run"):
            bias = strategy(form, trust="run")
            results[form] = []
            for student, teacher, target in batches():
                own = slice(rank * SIZE // world, (rank + 1) * SIZE // world)
                loss = bias(KD(), Outputs(student[own]), Outputs(teacher[own]), target[own])
                means = torch.stack([loss.total, loss.label_trust, loss.discount.mean()])
                dist.all_reduce(means)
                results[form].append(means / world)
        if rank == 0:
            torch.save(results, f"{folder}/results.pt")


def test_two_ranks_trust_as_one_process(tmp_path):
    spawn(run_rank, (2, str(tmp_path)), nprocs=2)
    for form, steps in torch.load(tmp_path / "results.pt").items():
        bias = strategy(form, trust="run")
        for means, (student, teacher, target) in zip(steps, batches(), strict=True):
            loss = bias(KD(), Outputs(student), Outputs(teacher), target)
            torch.testing.assert_close(means, torch.stack([loss.total, loss.label_trust, loss.discount.mean()]))
