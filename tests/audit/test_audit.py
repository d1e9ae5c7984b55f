"""The audit against a slow count, on one process and on two."""

import json
from pathlib import Path

import pytest
import torch
from processes import launch
from tiny import CLASSES, TinyData, by_gamma, network

from lightning_biaskd import (
    DKD,
    KD,
    BiasStrategy,
    ClassificationModule,
    DistillationModule,
    EnsembleTeacher,
    UserError,
    WeightedSum,
)
from lightning_biaskd.__main__ import main
from lightning_biaskd.audit import audit
from lightning_biaskd.bias import rectify
from lightning_biaskd.bias import trust as forms
from lightning_biaskd.distillers import FitNet, LabelSmoothing
from lightning_biaskd.training.passes import QUIET


class Sure(torch.nn.Module):
    """Answers with the class that the first pixel of the image says."""

    def forward(self, image):
        return 9.0 * torch.nn.functional.one_hot(image[:, 0, 0, 0].long(), CLASSES)


class Spoken(TinyData):
    """Images whose first pixel is a class: the label, and ``wrong`` times the next one."""

    def __init__(self, wrong):
        super().__init__()
        image, target = self.loader.dataset.tensors
        image[:, 0, 0, 0] = target
        image[:wrong, 0, 0, 0] = (target[:wrong] + 1) % CLASSES


@pytest.fixture
def report(trainer):
    def run(module, data=None):
        return audit(module, data or TinyData(), trainer(**{**QUIET, "limit_val_batches": None}))

    return run


def test_a_notebook_shows_the_report_as_tables(report):
    data = Spoken(wrong=12)
    data.class_names = ["<b>", *"cdefg"]
    found = report(DistillationModule(network(), Sure()), data)
    html = found._repr_html_()
    assert "<td>12 views, 25.00%</td>" in html
    assert html.count("<table>") == html.count("</table>") == 5
    assert "&lt;b&gt;" in html
    assert "<b>c" not in html
    right = report(DistillationModule(network(), Sure()), Spoken(wrong=0))._repr_html_()
    assert right.count("<table>") == 1


def answers(module, data):
    image, target = data.loader.dataset.tensors
    return module.teacher(image).logits, target


def test_it_counts_what_a_slow_loop_counts(report):
    method = WeightedSum([(KD(1.0), 1.0), (DKD(temperature=3.0), 0.5)])
    module, data = DistillationModule(network(), network(), method, by_gamma("swap")), TinyData()
    found = report(module, data)
    logits, target = answers(module, data)
    p = logits.softmax(1)
    wrong = [i for i in range(48) if p[i].argmax() != target[i]]
    right = [i for i in range(48) if i not in wrong]
    assert (found.views, found.wrong, found.passes) == (48, len(wrong), 1)
    assert found.confidence_right == pytest.approx(p[right].amax(1).mean().item())
    assert found.confidence_wrong == pytest.approx(p[wrong].amax(1).mean().item())
    assert found.label_when_wrong == pytest.approx(sum(p[i, target[i]].item() for i in wrong) / len(wrong))
    second = [i for i in wrong if p[i].sort(descending=True).indices[1] == target[i]]
    assert found.label_second == pytest.approx(len(second) / len(wrong))
    for which, histogram in ((right, found.histogram_right), (wrong, found.histogram_wrong)):
        assert histogram == torch.histc(p[which].amax(1), 20, 0, 1).int().tolist()
    for label, entry in enumerate(found.classes):
        of_class = [i for i in range(48) if target[i] == label]
        assert entry.views == len(of_class)
        assert entry.wrong_rate == pytest.approx(len(set(of_class) & set(wrong)) / len(of_class))
    assert sum(mistake.views for mistake in found.mistakes) == len(wrong)
    assert found.mistakes == sorted(found.mistakes, key=lambda mistake: -mistake.views)
    assert {(c.mode, c.temperature) for c in found.corrections} == {
        (mode, tau) for mode in ("swap", "blend", "onehot", "revise") for tau in (1.0, 3.0)
    }
    for c in found.corrections:
        tempered = (logits / c.temperature).softmax(1)
        corrected = rectify(tempered, target, c.mode)
        missed = [i for i in wrong if corrected[i].argmax() != target[i]]
        assert c.not_on_top == pytest.approx(len(missed) / len(wrong))
        assert c.moved == pytest.approx((corrected - tempered).clamp_min(0).sum(1).mean().item(), rel=1e-3)


@pytest.mark.parametrize("trust", ["student", "bounded", "run", "class"])
def test_it_shows_how_much_teacher_each_class_gets(trust, report):
    bias = by_gamma("drop", "batch", "ramp", trust=trust, refund=True)
    module, data = DistillationModule(network(), network(), KD(), bias), TinyData()
    found = report(module, data)
    logits, target = answers(module, data)
    student = module.eval()(data.loader.dataset.tensors[0])
    right, knows = logits.argmax(1) == target, student.argmax(1) == target
    for label, entry in enumerate(found.classes):
        of_class = target == label
        if trust in ("run", "class"):
            counted = of_class if trust == "class" else torch.ones_like(of_class)
            gap = right[counted].float().mean() - knows[counted].float().mean()
            shares = (gap / 0.1 + 0.5).clamp(0, 1).expand(len(target))
        else:
            shares = getattr(forms, trust)(student, logits, target)
        expected = torch.where(right, shares, 0)[of_class].mean().item()
        assert entry.trust == pytest.approx(expected, abs=1e-6)
    assert "Classes that get the least of the teacher" in str(found)
    assert "Classes that get the least" not in str(
        report(DistillationModule(network(), network(), bias=by_gamma()), data)
    )


@pytest.mark.parametrize("trust", ["student", "run"])
def test_each_class_is_told_what_the_method_itself_would_get(trust, report):
    method = WeightedSum([(FitNet(layers="2"), 1.0), (LabelSmoothing(), 1.0)])
    bias = by_gamma("blend", "batch", "complement", trust=trust)
    module, data = DistillationModule(network(), network(), method, bias), TinyData()
    module.rehearse(data.loader.dataset.tensors[0])
    found = report(module, data)
    logits, target = answers(module, data)
    student = module.eval()(data.loader.dataset.tensors[0])
    right = logits.argmax(1) == target
    gap = right.float().mean() - (student.argmax(1) == target).float().mean()
    running = (gap / 0.1 + 0.5).clamp(0, 1).expand(len(target))
    trusted = running if trust == "run" else forms.student(student, logits, target)
    shares = (torch.where(right, trusted, 0) + 1) / 2  # features of wrong samples are dropped, labels need no teacher
    for label, entry in enumerate(found.classes):
        assert entry.trust == pytest.approx(shares[target == label].mean().item(), abs=1e-6)


def test_it_changes_nothing_and_writes_nothing(report, tmp_path):
    module = DistillationModule(network(), network())
    before = [p.clone() for p in (*module.student.parameters(), *module.teacher.model.parameters())]
    report(module)
    after = [*module.student.parameters(), *module.teacher.model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(0, "right on all 48 views: there is no bias, and correcting it does nothing"), (12, "At most 12 of 48")],
)
def test_the_verdict_is_plain(wrong, says, report, tmp_path):
    found = report(
        DistillationModule(torch.nn.Sequential(*network()), Sure(), bias=BiasStrategy.paper()), Spoken(wrong)
    )
    assert found.wrong == wrong
    assert says in str(found)
    assert ("fades right knowledge out" in str(found)) == (wrong == 0)  # its balance is complement
    found.save(tmp_path)
    assert (tmp_path / "audit.txt").read_text().strip() == str(found)
    assert json.loads((tmp_path / "audit.json").read_text())["wrong"] == wrong
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("method", "bias", "says"),
    [
        (KD(), None, "Plain distillation hands the 12 wrong answers on as they are"),
        (KD(), by_gamma("none"), "Mode none hands the 12 wrong"),
        (KD(), by_gamma("drop"), "Mode drop drops the 12 wrong answers"),
        (KD(), by_gamma("swap"), "one wrong view weighs as much as 3 right ones at γ = ½"),
        (KD(), by_gamma("swap", balance="ramp"), "as 3 right ones at γ = 1"),
        (KD(), BiasStrategy(), "corrects them in part, as label_trust=run decides. Corrected in full, "),
        (LabelSmoothing(), by_gamma("swap"), "reads no logits, so the strategy drops"),
    ],
)
def test_it_tells_what_the_configured_strategy_does(method, bias, says, report):
    text = str(report(DistillationModule(network(), Sure(), method, bias), Spoken(12)))
    assert says in text
    assert ("What each correction would do" in text) == (not isinstance(method, LabelSmoothing))


def test_an_ensemble_is_counted_as_its_student_would_hear_it(report):
    experts = [Sure(), network()]
    for weights in ("mean", "confidence"):
        bias = by_gamma("swap", "batch", "equal", per_teacher=weights == "mean")
        module = DistillationModule(network(), EnsembleTeacher(experts, weights), bias=bias)
        data = Spoken(12)
        found = report(module, data)
        step = module.distillation(*data.loader.dataset.tensors)
        assert found.wrong_rate == pytest.approx(step.logged["bias/wrong_rate"].item())
        wrong = step.teacher.logits.argmax(1) != data.loader.dataset.tensors[1]
        assert found.wrong == wrong.sum()
        assert ("corrects the answer of each teacher" in str(found)) == bias.per_teacher


def test_classes_without_views_are_told_as_unknown(report, tmp_path):
    found = report(DistillationModule(network(), network()), TinyData(labels=torch.arange(48) % 3))
    found.save(tmp_path)
    rates = [entry["wrong_rate"] for entry in json.loads((tmp_path / "audit.json").read_text())["classes"]]
    assert [rate is None for rate in rates] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("module", "labels", "says"),
    [
        (lambda: ClassificationModule(network()), None, "not at a ClassificationModule: name a DistillationModule"),
        (lambda: DistillationModule(network(9), network(9)), None, "the teacher gives 9 classes and the data have 6"),
        (lambda: DistillationModule(network(), network()), torch.arange(48) - 1, r"labels lie .* outside \[0, 5\]"),
    ],
)
def test_mistakes_are_one_line(module, labels, says, report):
    with pytest.raises(UserError, match=says):
        report(module(), TinyData(labels))


def test_a_teacher_that_is_not_finite_is_one_line(report):
    module = DistillationModule(network(), network())
    module.teacher.model[5].bias.data[0] = torch.nan
    with pytest.raises(UserError, match="hold NaN or infinity"):
        report(module)


def test_the_command_leaves_three_files_and_takes_a_training_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    training = ["--trainer.accumulate_grad_batches", "4", "--trainer.gradient_clip_val", "1.0"]
    main(["audit", "--output", "found", "--passes", "2", "--trainer.accelerator", "cpu", *training])
    assert sorted(str(path) for path in Path().rglob("*") if path.is_file()) == [
        *("found/audit.json", "found/audit.png", "found/audit.txt")
    ]
    found = json.loads(Path("found/audit.json").read_text())
    assert (found["views"], found["passes"]) == (2 * 1131, 2)
    assert "At most" in capsys.readouterr().out


def test_two_processes_count_every_view_once(tmp_path):
    arguments = ["audit", "--trainer.accelerator", "cpu", "--data.strong_view", "true"]  # 1,131 images: an odd number
    found = []
    for devices in (1, 2):
        more = ["--output", str(devices), "--trainer.strategy", "ddp", "--trainer.devices", str(devices)]
        said = launch(main, [*arguments, *more], ranks=devices, folder=tmp_path)
        assert "".join(said).count("At most") == 1
        found.append(json.loads((tmp_path / str(devices) / "audit.json").read_text()))
    one, two = found
    assert one["views"] == two["views"] == 2 * 1131
    for key in ("wrong", "classes", "mistakes", "histogram_wrong"):
        assert one[key] == two[key]
    for c1, c2 in zip(one["corrections"], two["corrections"], strict=True):
        assert c1["moved"] == pytest.approx(c2["moved"], rel=1e-5)
