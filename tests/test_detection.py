"""Boxes: distilling two-stage detectors proposal by proposal."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from boxed import CLASSES, detector, photo, write_voc
from processes import process_group, spawn
from tiny import snapshot, unchanged
from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.ops import box_iou

from lightning_biaskd import (
    BiasStrategy,
    DetectionDistillationModule,
    DetectionModule,
    EnsembleTeacher,
    Outputs,
    UserError,
)
from lightning_biaskd.__main__ import main
from lightning_biaskd.audit import draw_boxes
from lightning_biaskd.bias.boxes import corrected_boxes
from lightning_biaskd.callbacks import BiasMonitor, ResultTable
from lightning_biaskd.data import VOCDetectionDataModule
from lightning_biaskd.distillers import CRD, CWD, DIST, KD, MGD, PKD, FitNet, WeightedSum
from lightning_biaskd.metrics import DetectionScores
from lightning_biaskd.models import faster_rcnn, resnet8
from lightning_biaskd.training.detection_step import DetectionDistillation
from lightning_biaskd.training.detectors import Answers, Sampled, answers, pyramid, sampled

pytest.importorskip("pycocotools", reason="average precision needs the extra detection")
PAPER = BiasStrategy.paper("swap")


def batch(numbers=(1, 2), dtype=torch.float32):
    images, targets = [], []
    for number in numbers:
        pixels, boxes = photo(number)
        images.append((torch.from_numpy(pixels).permute(2, 0, 1) / 255).to(dtype))
        boxes = torch.tensor(boxes, dtype=dtype).view(-1, 4)
        targets.append({"boxes": boxes, "labels": torch.arange(1, 1 + len(boxes))})
    return images, targets


def data(root, **kwargs):
    settings = {"val": "test", "batch_size": 2, **kwargs}
    return VOCDetectionDataModule(str(root), classes=CLASSES, **settings)


def test_the_losses_without_a_teacher_are_torchvisions():
    student = detector().train()
    images, targets = batch((1, 0, 2))
    torch.manual_seed(5)
    torchvisions = student(images, targets)
    for distillation in (
        DetectionDistillation(student, detector(1), KD(), None, kd_weight=0.0, box_weight=0.0).train(),
        None,
    ):
        torch.manual_seed(5)
        if distillation is None:
            step = DetectionModule(student).losses((images, targets), 0)
        else:
            step = distillation(images, targets)
        torch.testing.assert_close(step.loss, sum(torchvisions.values()))
        names = {"ce": "loss_classifier", "box": "loss_box_reg", "objectness": "loss_objectness"}
        for ours, theirs in names.items():
            torch.testing.assert_close(step.logged[f"train/loss_{ours}"], torchvisions[theirs])


@pytest.mark.parametrize("bias", [None, BiasStrategy(trust=None, label_trust=None), PAPER, BiasStrategy("drop")])
@pytest.mark.parametrize("method", [KD(), DIST()], ids=["KD", "DIST"])
def test_a_proposal_is_a_row(bias, method):
    student, teacher = detector().train(), detector(1)
    distillation = DetectionDistillation(student, teacher, method, bias, box_weight=0.0).train()
    images, targets = batch((1, 0))  # the second has no object
    torch.manual_seed(5)
    step = distillation(images, targets)
    torch.manual_seed(5)
    found, own = sampled(student, images, targets)
    with torch.no_grad():
        theirs = answers(distillation.teacher.model, pyramid(distillation.teacher.model, found.images), found).logits
    labels = torch.cat(found.labels)
    assert len(labels) < step.target.numel()  # filled up
    expected = copy.deepcopy(distillation.bias)
    if isinstance(expected, BiasStrategy) and expected.running is not None:
        expected.running.counts.zero_()
    loss = expected(method, Outputs(own.logits), Outputs(theirs), labels)
    torch.testing.assert_close(step.logged["train/loss_kd"], loss.total.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step.logged["bias/wrong_rate"], loss.wrong_rate)
    assert step.teacher.logits.shape == (2, 3, 16)


def test_whose_box_is_learned():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(50, 4, generator=generator)
    truth[:, 2:] += 1 + truth[:, :2]
    teacher, student = (truth + torch.randn(50, 4, generator=generator) / 5 for _ in range(2))
    better = box_iou(teacher, truth).diagonal() > box_iou(student, truth).diagonal()
    assert 10 < better.sum() < 40
    for mode, rows in (("none", torch.ones(50, dtype=torch.bool)), ("drop", better), ("blend", better)):
        boxes, used = corrected_boxes(teacher, student, truth, mode)
        assert torch.equal(boxes[rows], teacher[rows])
        assert torch.equal(used, better if mode == "drop" else torch.ones_like(better))
        assert mode != "blend" or torch.equal(boxes[~rows], truth[~rows])


def test_a_teacher_that_is_no_better_hands_over_no_box():
    student = detector().train()
    images, targets = batch()
    found = {}
    for name, bias in {"plain": None, "drop": BiasStrategy("drop"), "swap": BiasStrategy()}.items():
        torch.manual_seed(5)
        found[name] = DetectionDistillation(student, copy.deepcopy(student), bias=bias).train()(images, targets).logged
    assert found["plain"]["train/loss_box_kd"] < 1e-9  # its own boxes
    assert found["drop"]["train/loss_box_kd"] == 0
    torch.testing.assert_close(found["swap"]["train/loss_box_kd"], found["swap"]["train/loss_box"])
    assert found["plain"]["train/loss_kd"] < 1e-6


def _answers(maps, right):
    logits = torch.zeros(4, 3)
    logits[:2, 0] = 9.0  # background, twice
    logits[2, 1 if right else 2] = logits[3, 2] = 9.0
    return Answers(logits, torch.zeros(4, 12), maps)


@pytest.mark.parametrize("method", [FitNet("0"), PKD("0")], ids=["FitNet", "PKD"])
def test_features_of_an_object_that_the_teacher_gets_wrong_are_dropped(method):
    distillation = DetectionDistillation(detector(), detector(1), method, BiasStrategy("drop", trust=None)).train()
    boxes = torch.tensor([[0.0, 0, 40, 40], [0, 0, 40, 40], [8, 8, 16, 16], [24, 24, 32, 32]])
    labels = torch.tensor([0, 0, 1, 2])
    found = Sampled(torch.zeros(1, 3, 40, 40), [(40, 40)], [boxes], [labels], [torch.zeros(4, 4)], {})
    own = _answers({"0": torch.randn(1, 4, 10, 10)}, right=True)
    theirs, changed = ({"0": torch.randn(1, 4, 10, 10)} for _ in range(2))
    inside = torch.zeros(10, 10, dtype=torch.bool)
    inside[2:4, 2:4] = True
    changed["0"] = torch.where(inside, changed["0"], theirs["0"])
    torch.manual_seed(0)
    losses = {
        (right, name): distillation.step_of(found, own, _answers(maps, right)).logged["train/loss_kd"]
        for right in (True, False)
        for name, maps in (("given", theirs), ("changed", changed))
    }
    assert losses[True, "given"] != losses[True, "changed"]
    assert losses[False, "given"] == losses[False, "changed"]


def test_pyramids_of_different_widths_are_distilled_by_every_kind_of_method():
    student, teacher = detector().train(), detector(1, channels=6)
    images, targets = batch()
    parts = [(KD(), 1.0), (PKD(["0", "-1"]), 1.0), (MGD("1", masked=0.5, hides="positions"), 0.01)]
    distillation = DetectionDistillation(student, teacher, WeightedSum(parts)).train()
    step = distillation(images, targets, torch.arange(2))
    step.loss.backward()
    assert step.loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distillation.distiller.parameters())


def test_mgd_hides_whole_positions():
    method = MGD(masked=0.5, hides="positions")
    outputs = Outputs(torch.zeros(2, 3), {"-1": torch.ones(2, 4, 6, 7)}, index=torch.tensor([3, 9]))
    method.build(outputs, outputs)
    seen = []
    method.connectors[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method(outputs, outputs, torch.zeros(2, dtype=torch.long))
    assert torch.equal(seen[0], seen[0][:, :1].expand(-1, 4, -1, -1))
    assert 0.2 < seen[0].mean() < 0.8
    with pytest.raises(UserError, match="choose channels or positions"):
        MGD(hides="pixels")


def one_stage():
    backbone = detector().backbone
    return RetinaNet(backbone, 3, anchor_generator=detector().rpn.anchor_generator)


def with_masks():
    return MaskRCNN(detector().backbone, 3, rpn_anchor_generator=detector().rpn.anchor_generator)


@pytest.mark.parametrize(
    ("networks", "settings", "told"),
    [
        (lambda: (one_stage(), detector()), {}, "RetinaNet is no two-stage detector"),
        (lambda: (detector(), with_masks()), {}, "MaskRCNN predicts masks or keypoints"),
        (lambda: (detector(), detector(classes=4)), {}, "num_classes=4 and the student 3, the background included"),
        (lambda: (detector(), detector(size=48)), {}, r"min_size=\[40\] and the teacher with \[48\]"),
        (lambda: (detector(), detector()), {"distiller": CRD()}, "CRD compares images"),
        (lambda: (detector(), detector()), {"distiller": CWD()}, "CWD compares images or the positions"),
        (lambda: (detector(), detector()), {"distiller": PKD(["0", "7"])}, "no map '7': choose some of 0, 1, pool"),
        (lambda: (detector(), EnsembleTeacher([detector(), detector()])), {}, "an ensemble of teachers"),
    ],
)
def test_what_cannot_be_distilled_is_told_in_one_line(networks, settings, told):
    with pytest.raises(UserError, match=told) as error:
        DetectionDistillationModule(*networks(), **settings)
    assert "\n" not in str(error.value)


def test_detectors_that_cannot_be_built_are_told():
    for settings, told in (({"layers": ["a", "b"]}, "no layer 'a': choose of conv1"), ({"anchors": [8]}, "1 anchors")):
        with pytest.raises(UserError, match=told):
            faster_rcnn(resnet8(), 3, **{"layers": ["layer2"], "anchors": [8, 16], **settings})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda images, targets: (images, targets[:1]), "2 images and 1 targets"),
        (lambda images, targets: (torch.stack(images), torch.zeros(2)), "collate_fn"),
        (lambda images, targets: ([(255 * x).byte() for x in images], targets), "floats in"),
        (lambda images, targets: (images, [{**t, "labels": t["labels"] + 1} for t in targets]), r"outside \[1, 2\]"),
        (lambda images, targets: (images, [{**t, "labels": t["labels"] - 1} for t in targets]), "is the background"),
        (lambda images, targets: (images, [{**t, "boxes": t["boxes"][:, [2, 1, 0, 3]]} for t in targets]), "area"),
        (lambda images, targets: (images, [{**t, "boxes": t["boxes"] / 100} for t in targets]), "not relative"),
        (lambda images, targets: (images, [{**t, "boxes": t["boxes"] + 32} for t in targets]), "outside of its image"),
        (lambda images, targets: ([255 * image for image in images], targets), r"values up to \d+, not in \[0, 1\]"),
        (lambda images, targets: (images, [{"boxes": t["boxes"]} for t in targets]), "boxes .* and labels"),
        (lambda images, targets: (images, [{**t, "boxes": t["boxes"][:1]} for t in targets]), r"boxes \(1, 4\)"),
    ],
)
def test_batches_of_another_kind_are_told(change, told):
    with pytest.raises(UserError, match=told) as error:
        DetectionModule(detector()).checked_batch(change(*batch()), 0)
    assert "\n" not in str(error.value)


def test_pixels_are_checked_before_a_prediction_too():
    module = DetectionModule(detector()).eval()
    images = torch.stack(batch()[0])
    assert len(module.predict_step(images, 0)) == 2
    with pytest.raises(UserError, match=r"not in \[0, 1\]: divide them by 255"):
        module.predict_step(255 * images, 0)


def test_a_fit_leaves_the_teacher_alone_and_logs_both_networks(tmp_path, trainer, capsys):
    teacher = detector(1)
    teacher.roi_heads.score_thresh = teacher.roi_heads.box_predictor.cls_score.bias.data[1:] = 0.0
    teacher.rpn.head.conv.add_module("statistics", nn.BatchNorm2d(4))
    before = snapshot(teacher)
    module = DetectionDistillationModule(
        detector(), teacher, WeightedSum([(KD(), 1.0), (PKD("0"), 1.0)]), optimizer=lambda p: torch.optim.Adam(p, 0.001)
    )
    parts = data(write_voc(tmp_path / "voc", difficult=[6]))
    run = trainer(max_epochs=2, callbacks=[BiasMonitor(), ResultTable()])
    with pytest.warns(match="was given no weights and finds next to nothing"):
        run.fit(module, parts)
    assert unchanged(before, teacher)
    assert not any(m.training for m in module.teacher.model.modules())
    values = {key: value.item() for key, value in run.callback_metrics.items()}
    assert values["val/gap"] == pytest.approx(values["val/map"] - values["val/teacher_map"])
    assert {"train/loss_box_kd", "train/loss_kd", "bias/trust", "val/map_50", "val/map/red"} <= values.keys()
    assert {f"bias/wrong_rate/{name}" for name in ("background", *CLASSES)} <= values.keys()
    (tested,) = run.test(module, parts, verbose=False)
    assert tested["test/teacher_map"] >= 0
    assert "mean average precision" in capsys.readouterr().out
    found = run.predict(module, parts)
    assert len(found[0]) == 2
    assert {"boxes", "labels", "scores"} == found[0][0].keys()


def test_a_student_alone_learns_to_find_the_objects(tmp_path, trainer):
    module = DetectionModule(detector(channels=8), optimizer=lambda p: torch.optim.Adam(p, 0.005))
    parts = data(write_voc(tmp_path), val=None, val_split=0, test="train")
    run = trainer(max_epochs=40)
    run.fit(module, parts)
    (tested,) = run.test(module, parts, verbose=False)
    assert tested["test/map_50"] > 0.05  # 0 at first


def test_the_number_of_classes_and_half_precision_are_checked(tmp_path, trainer):
    parts = data(write_voc(tmp_path))
    with pytest.raises(UserError, match="has num_classes=5, and the data have 3, the background included"):
        trainer().fit(DetectionModule(detector(classes=5)), parts)
    with pytest.raises(UserError, match="choose bf16-mixed"):
        trainer(precision="bf16-true").fit(DetectionModule(detector()), parts)


def test_the_command_line_trains_tests_and_compares(tmp_path, monkeypatch):
    write_voc(tmp_path / "voc")
    monkeypatch.chdir(tmp_path)
    backbone = {"class_path": "lightning_biaskd.models.resnet8"}
    settings = {"backbone": backbone, "num_classes": 3, "layers": ["layer3"], "channels": 4, "hidden": 8, "size": 40}
    settings |= {"anchors": [8, 16], "proposals": 8, "sampled": 8}
    network = {"class_path": "lightning_biaskd.models.faster_rcnn", "init_args": settings}
    config = {
        "data": {
            "class_path": "VOCDetectionDataModule",
            "init_args": {"root": "voc", "classes": CLASSES, "val": "test", "batch_size": 2},
        },
        "model": {"class_path": "DetectionDistillationModule", "init_args": {"student": network, "teacher": network}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", "run.yaml", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs"])
    (checkpoint,) = Path("runs").rglob("*.ckpt")
    main(["test", "-c", "run.yaml", "--ckpt_path", str(checkpoint), "--trainer.logger=false"])


def test_scores_are_torchmetrics_and_ignore_what_is_difficult():
    box = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    target = {"boxes": box, "labels": torch.tensor([1, 1]), "iscrowd": torch.tensor([0, 1])}
    scores = DetectionScores(["background", "red", "green"], "val/")
    scores.update([{"boxes": box[:1], "labels": torch.tensor([1]), "scores": torch.ones(1)}], [target])
    found = scores.compute()
    assert found["val/map"] == found["val/map/red"] == 1  # the second object isn't missed
    assert found["val/map_large"].isnan()


def test_a_missing_pycocotools_is_told_before_training(tmp_path, trainer, monkeypatch):
    monkeypatch.setattr("torchmetrics.detection.mean_ap._PYCOCOTOOLS_AVAILABLE", False)
    monkeypatch.setattr("torchmetrics.detection.mean_ap._FASTER_COCO_EVAL_AVAILABLE", False)
    with pytest.raises(UserError, match="pip install 'lightning-biaskd"):
        trainer().fit(DetectionModule(detector()), data(write_voc(tmp_path)))


def test_boxes_are_drawn_as_right_wrong_and_missed():
    target = {"boxes": torch.tensor([[5.0, 5, 30, 30], [40, 20, 70, 50]]), "labels": torch.tensor([1, 2])}
    boxes = torch.tensor([[6.0, 5, 30, 30], [5, 6, 30, 30], [60, 0, 75, 10], [0, 0, 9, 9]])
    found = {"boxes": boxes, "labels": torch.tensor([1, 1, 2, 2]), "scores": torch.tensor([0.9, 0.8, 0.7, 0.1])}
    figure = draw_boxes([torch.rand(3, 60, 80)], [target], [found], class_names=["background", *CLASSES])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["2 objects", "teacher: 1 right, 2 wrong, 1 missed"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["red", "red", "green", "green"]
    with pytest.raises(UserError, match="as many of each as images"):
        draw_boxes([torch.rand(3, 60, 80)], [target], [])


def _a_rank(rank, folder):
    with process_group(rank, 2, folder):
        torch.save(_gradients(slice(2 * rank, 2 * rank + 2)), f"{folder}/{rank}.pt")


def _gradients(own):
    """All proposals and anchors are sampled, so that nothing is drawn at random; the ranks have unequal numbers."""
    every = {"sampled": 64, "proposals": 8}
    student, teacher = detector(**every).double(), detector(1, **every).double()
    for network in (student, teacher):
        network.rpn.proposal_matcher.low_threshold = network.rpn.proposal_matcher.high_threshold = 0.5
        network.rpn.fg_bg_sampler.batch_size_per_image = 10**4
    method = WeightedSum([(KD(), 1.0), (FitNet("0"), 1.0)])
    module = DetectionDistillation(student, teacher, method, BiasStrategy(trust=None, label_trust="student")).train()
    module.load_state_dict(
        {k: torch.full_like(v, 0.1) if k.startswith("distiller") else v for k, v in module.state_dict().items()}
    )
    images, targets = batch((1, 0, 2, 3), torch.float64)
    module.distiller.eval()
    module(images[own], targets[own]).loss.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def test_two_ranks_with_unequal_numbers_of_proposals_are_one(tmp_path):
    spawn(_a_rank, (str(tmp_path),), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    whole = _gradients(slice(None))
    assert whole.keys() == ranks[0].keys()
    for name, gradient in whole.items():
        both = (ranks[0][name] + ranks[1][name]) / 2  # as DDP averages
        torch.testing.assert_close(both, gradient, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
