"""Trust by running accuracies: against a slow count over samples, over ranks, compiled, resumed."""

import copy

import pytest
import torch
import torch.distributed as dist
from processes import process_group, spawn
from tiny import CLASSES, CompilationCount, TinyData, by_gamma, network

from lightning_biaskd import KD, DistillationModule, Outputs
from lightning_biaskd.bias import running_trust
from lightning_biaskd.bias.running_trust import RunningTrust
from lightning_biaskd.training.step import Distillation

FORMS = ("run", "class")
STEPS, SIZE, WIDTH = 6, 24, 0.5  # so wide that no trust is cut off at 0 or 1


def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        target = torch.randint(CLASSES, (SIZE,), generator=generator)
        likely = 2 * torch.nn.functional.one_hot(target, CLASSES)
        student, teacher = (torch.randn(SIZE, CLASSES, generator=generator) + c * likely for c in (0.4, 0.5))
        yield student, teacher, target


def slow_trust(form, memory):
    """Samples one by one, each with the weight that the later batches leave it."""
    history, trusts = [], []
    for student, teacher, target in batches():
        same = [[form == "run" or int(a) == int(b) for b in target] for a in range(CLASSES)]
        for entry in history:
            entry["weight"] *= max(0.0, 1 - sum(same[entry["label"]]) / memory)
        for s, t, y in zip(student.argmax(1), teacher.argmax(1), target, strict=True):
            history.append({"label": int(y), "weight": 1.0, "gain": float(t == y) - float(s == y)})
        row = []
        for y in target.tolist():
            counted = [entry for entry in history if form == "run" or entry["label"] == y]
            gap = sum(e["weight"] * e["gain"] for e in counted) / sum(e["weight"] for e in counted)
            row.append(min(max(gap / WIDTH + 0.5, 0.0), 1.0))
        trusts.append(row)
    return torch.tensor(trusts)


def trained(form):
    bias = by_gamma("none", "batch", "ramp", trust=form, refund=True)
    bias.gamma.fill_(1.0)
    bias.running.width = WIDTH
    return bias, torch.stack([bias(KD(), Outputs(s), Outputs(t), y).trust for s, t, y in batches()])


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_slow_count(form, monkeypatch):
    monkeypatch.setattr(running_trust, "MEMORY", 60)
    monkeypatch.setattr(running_trust, "CLASS_MEMORY", 20)
    expected = slow_trust(form, 60 if form == "run" else 20)
    assert len(expected.unique()) > STEPS // 2
    torch.testing.assert_close(trained(form)[1], expected, rtol=1e-4, atol=1e-5)


def test_a_student_that_overtakes_its_teacher_is_let_go():
    running, target = RunningTrust(), torch.zeros(100, dtype=torch.long)
    teacher = torch.arange(100) < 60
    trusts = []
    for right in (20, 55, 60, 65, 90):
        running.counts.zero_()
        running.update(running.tally(teacher, torch.arange(100) < right, target))
        trusts.append(round(running(target)[0].item(), 3))
    assert trusts == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_what_was_never_counted_is_half_trusted():
    assert RunningTrust()(torch.tensor([0, 1])).tolist() == [0.5, 0.5]
    running = RunningTrust(per_class=True)
    running.build(3)
    assert running(torch.tensor([2])).tolist() == [0.5]


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_counts_nothing(form):
    bias, _ = trained(form)
    before = bias.running.counts.clone()
    student, teacher, target = next(batches())
    bias.eval()(KD(), Outputs(student), Outputs(teacher), target)
    assert torch.equal(bias.running.counts, before)


def test_without_running_accuracies_there_is_no_state():
    assert not by_gamma().state_dict()
    assert not by_gamma("drop", "batch", trust="student").state_dict()


@pytest.mark.parametrize("form", FORMS)
def test_the_counts_are_resumed(form):
    bias, _ = trained(form)
    fresh = by_gamma("none", "batch", "ramp", trust=form, refund=True)
    fresh.load_state_dict(bias.state_dict())
    fresh.gamma.fill_(1.0)
    fresh.running.width = WIDTH
    answers = next(batches())
    losses = [each(KD(), *map(Outputs, answers[:2]), answers[2]) for each in (bias, fresh)]
    assert torch.equal(losses[0].trust, losses[1].trust)
    assert torch.equal(bias.running.counts, fresh.running.counts)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_counts_as_single_precision_does(precision):
    half, single = RunningTrust().to(precision), RunningTrust()
    target, per_image = torch.zeros(8 * 4096, dtype=torch.long), 4096
    for _ in range(10):
        teacher, student = torch.rand(2, len(target)) < 0.6
        for running in (half, single):
            running.update(running.tally(teacher, student, target), per_image)
    assert torch.equal(half.counts, single.counts)
    assert half.double().counts.dtype == torch.float64


def test_a_fit_in_half_precision_counts_every_view(trainer):
    module = DistillationModule(network(), network())
    trainer(precision="bf16-true").fit(module, TinyData(batch_size=5))
    assert module.bias.running.counts[0].item() == pytest.approx(48, abs=1)


@pytest.mark.parametrize("form", FORMS)
def test_it_compiles_in_one_graph(form):
    count = CompilationCount()
    step = Distillation(network(), network(), KD(), by_gamma("drop", "batch", "ramp", trust=form, refund=True))
    step.rehearse(torch.randn(2, 1, 6, 6))
    eager = copy.deepcopy(step.bias)
    torch._dynamo.reset()
    step.bias.compile(fullgraph=True, backend=count)
    for student, teacher, target in batches():
        compiled = step.bias(KD(), Outputs(student), Outputs(teacher), target)
        expected = eager(KD(), Outputs(student), Outputs(teacher), target)
        torch.testing.assert_close(compiled.trust, expected.trust)
    assert count.graphs == 1


def run_rank(rank, world, folder):
    with process_group(rank, world, folder):
        results = {}
        for form in ("student", "wsld", "bounded", *FORMS):
            bias = by_gamma("swap", "batch", "ramp", trust=form, refund=True)
            bias.gamma.fill_(0.3)
            steps = []
            for student, teacher, target in batches():
                own = slice(rank * SIZE // world, (rank + 1) * SIZE // world)
                loss = bias(KD(), Outputs(student[own]), Outputs(teacher[own]), target[own])
                total = loss.total.clone()
                dist.all_reduce(total)
                shares = [torch.empty_like(loss.trust) for _ in range(world)]
                dist.all_gather(shares, loss.trust)
                steps.append((total / world, torch.cat(shares)))
            results[form] = steps
        if rank == 0:
            torch.save(results, f"{folder}/results.pt")


def test_two_ranks_trust_as_one_process(tmp_path):
    spawn(run_rank, (2, str(tmp_path)), nprocs=2)
    for form, steps in torch.load(tmp_path / "results.pt").items():
        bias = by_gamma("swap", "batch", "ramp", trust=form, refund=True)
        bias.gamma.fill_(0.3)
        for (total, shares), (student, teacher, target) in zip(steps, batches(), strict=True):
            loss = bias(KD(), Outputs(student), Outputs(teacher), target)
            torch.testing.assert_close(total, loss.total)
            torch.testing.assert_close(shares, loss.trust)
