"""What users' own networks, methods, data modules and labels hand over: taken as meant, or refused in one line."""

import csv
import math
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from tiny import network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_biaskd import (
    BiasStrategy,
    ClassificationModule,
    ClassMap,
    DistillationModule,
    Distiller,
    FrozenTeacher,
    InputSpec,
    Outputs,
    UserError,
)
from lightning_biaskd.callbacks import BiasMonitor, DynamicWeights, PredictionWriter
from lightning_biaskd.data import InMemoryDataModule
from lightning_biaskd.distillers import TeKAP
from lightning_biaskd.metrics import BeyondTeacher
from lightning_biaskd.networks.inputs import InputConversion
from lightning_biaskd.training.checkpoint import newest
from lightning_biaskd.training.plain_values import plain
from lightning_biaskd.training.schedules import CosineOverRun
from lightning_biaskd.training.step import Distillation

IMAGE, LABEL = torch.randn(40, 1, 4, 4), torch.arange(40) % 5


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5))


class Plain(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(IMAGE, LABEL), 8)

    val_dataloader = train_dataloader


def divergence(reduction):
    class Own(Distiller):
        def forward(self, student, teacher, target, keep=None):
            return reduction(F.kl_div(student.logits.log_softmax(1), teacher.logits.softmax(1), reduction="none"))

    return Own()


@pytest.mark.parametrize("reduction", [lambda x: x, lambda x: x.sum(1, keepdim=True), lambda x: x.sum() / len(x)])
def test_a_method_that_gives_no_loss_for_each_sample_is_refused(reduction):
    student, teacher = Outputs(torch.randn(8, 8)), Outputs(torch.randn(8, 8))
    target = torch.arange(8)
    for bias in (None, BiasStrategy("drop")):
        step = Distillation(nn.Identity(), nn.Identity(), divergence(reduction), bias)
        with pytest.raises(UserError, match=r"Own gives losses of shape .* return one for each sample, \(8,\)"):
            step.step(student, teacher, target)
    Distillation(nn.Identity(), nn.Identity(), divergence(lambda x: x.sum(1))).step(student, teacher, target)
    for losses in (None, (torch.zeros(8), 1.0)):
        step = Distillation(nn.Identity(), nn.Identity(), divergence(lambda _, losses=losses: losses))
        with pytest.raises(UserError, match=r"Own gives losses of type (NoneType|tuple): return a tensor"):
            step.step(student, teacher, target)


def test_a_float_beside_the_label_is_no_index(trainer):
    loader = DataLoader(TensorDataset(IMAGE, LABEL, torch.rand(40)), 8)
    with pytest.raises(UserError, match="needs to know which images"):
        trainer().fit(DistillationModule(small(), small(), TeKAP(), bias=None), loader, loader)


class Shifting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, image):
        return self.net(image.sub_(0.5).div_(0.2))


@pytest.mark.parametrize("build", [Shifting, lambda: nn.Sequential(nn.ReLU(inplace=True), network())])
@pytest.mark.parametrize("backend", ["plain", "fast"])
def test_a_teacher_that_works_in_place_changes_nobody_elses_images(build, backend):
    model = build().eval()
    teacher = FrozenTeacher(model, backend=backend)
    for image in (torch.randn(20, 1, 6, 6), torch.randn(5, 1, 6, 6)):
        before = image.clone()
        logits = teacher(image).logits
        assert torch.equal(image, before)
        torch.testing.assert_close(logits, model(before), rtol=1e-4, atol=1e-4)
    assert teacher.fault is None


@pytest.mark.parametrize("name", ["student", "model", "teacher", "distiller", "bias"])
def test_a_part_that_would_not_be_used_is_refused(name):
    module = DistillationModule(network(), network())
    with pytest.raises(UserError, match=f"{name} of a DistillationModule can't be exchanged"):
        setattr(module, name, network())
    if name in ("student", "teacher", "distiller"):
        with pytest.raises(UserError, match=f"{name} of a Distillation can't be exchanged"):
            setattr(module.distillation, name, network())
    setattr(module, name, getattr(module, name))
    with pytest.raises(UserError, match="model of a ClassificationModule can't be exchanged"):
        ClassificationModule(network()).model = network()


@pytest.mark.parametrize("names", [np.array(list("abcde")), dict.fromkeys("abcde").keys(), tuple("abcde")])
def test_class_names_of_any_kind(names, trainer, tmp_path):
    data = Plain()
    data.class_names = names
    run = trainer(callbacks=[BiasMonitor()], default_root_dir=tmp_path)
    run.fit(DistillationModule(small(), small()), data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    stored = torch.load(tmp_path / "run.ckpt", weights_only=True)["class_names"]
    assert stored == [str(name) for name in names]


def test_class_names_of_another_number_are_refused(trainer):
    data = Plain()
    data.class_names = ["a", "b"]
    with pytest.raises(UserError, match="Plain has 2 class_names for 5 classes"):
        trainer(callbacks=[BiasMonitor()]).fit(DistillationModule(small(), small()), data)


@pytest.mark.parametrize("convert", [float, np.asarray, torch.tensor, lambda x: [x], lambda x: np.array([x])])
def test_a_mean_of_any_kind(convert, trainer):
    data = Plain()
    data.mean, data.std = convert(0.1307), convert(0.3081)
    module = DistillationModule(small(), small(), teacher_input=InputSpec([0.5], [0.5]))
    trainer().fit(module, data)
    given = module.teacher.convert.given
    assert (*given.mean, *given.std) == pytest.approx((0.1307, 0.3081))
    assert all(type(value) is float for value in (*given.mean, *given.std))


def test_pixels_up_to_255_are_found_out():
    for mean, std in (((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)), ((103.5,), (1.0,)), ((0.0,), (math.nan,))):
        with pytest.raises(UserError, match="are not of pixels in .* divide both by 255"):
            InputSpec(mean, std)

    class Shapes(InMemoryDataModule):
        num_classes, in_channels, image_size, mean, std = 3, 1, 8, (127.5,), (64.0,)

        def read(self, split):
            return torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8), torch.arange(60) % 3

    with pytest.raises(UserError, match=r"mean \[127.5\] is not one of pixels in .* divide mean and std by 255"):
        Shapes().setup("fit")


def test_images_in_named_tensors_are_converted():
    image, ids = torch.randn(4, 3, 4, 4), torch.arange(4)
    conversion = InputConversion(InputSpec(), InputSpec([0.5] * 3, [0.5] * 3))
    converted = conversion({"pixel_values": image, "ids": ids})
    torch.testing.assert_close(converted["pixel_values"], conversion(image))
    assert converted["ids"] is ids


@pytest.mark.parametrize("classes", [3, 6])
@pytest.mark.parametrize("ignored", [-100, -1, 2])
def test_images_without_a_label_are_in_no_metric(classes, ignored, trainer):
    net = nn.Linear(classes, classes)
    with torch.no_grad():
        net.weight.copy_(5 * torch.eye(classes))
        net.bias.zero_()
    label = torch.arange(60) % classes
    image = F.one_hot(label, classes).float()
    label[:30] = ignored
    loader = DataLoader(TensorDataset(image, label), 15)  # the first batches have no label at all
    own = {"own": MulticlassAccuracy(classes, average="micro")}
    for module in (
        ClassificationModule(net, ignore_index=ignored, metrics=own),
        DistillationModule(net, nn.Linear(classes, classes), ignore_index=ignored, metrics=own),
    ):
        (values,) = trainer().validate(module, loader, verbose=False)
        assert values["val/acc1"] == values["val/own"] == 1
        counted = [values[f"val/{name}"] for name in ("student_only", "both") if f"val/{name}" in values]
        assert not counted or sum(counted) == (label != ignored).sum()


def test_beyond_the_teacher_ignores_a_label_that_networks_give():
    metric = BeyondTeacher(ignore_index=2)
    metric.update(torch.eye(3), torch.eye(3), torch.arange(3))
    assert {name: int(count) for name, count in metric.compute().items() if count} == {"both": 2}


MAPS = torch.randint(4, (16, 8, 8))


@pytest.mark.parametrize(
    ("net", "target", "match"),
    [
        (nn.Conv2d(3, 4, 1), MAPS[:, None], r"give labels \(B, 8, 8\)"),
        (nn.Conv2d(3, 4, 1), MAPS.float(), "are of type float32: give integers|need integer labels"),
        (nn.Conv2d(3, 4, 1), F.one_hot(MAPS).movedim(-1, 1), r"give labels \(B, 8, 8\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)), torch.arange(16) % 4, r"give labels \(B, 1, 1\)"),
    ],
)
def test_labels_of_another_shape_are_refused_in_every_stage(net, target, match, trainer):
    loader = DataLoader(TensorDataset(torch.randn(16, 3, 8, 8), target), 8)
    for module in (ClassificationModule(net), DistillationModule(net, nn.Conv2d(3, 4, 1))):
        net.train()
        with pytest.raises(UserError, match=match):
            trainer(num_sanity_val_steps=0).fit(module, loader, loader)
        with pytest.raises(UserError, match=match):
            trainer().validate(module, loader)


def test_labels_of_several_classes_are_refused(trainer):
    image, target = torch.randn(16, 4), torch.tensor([[1.0, 0, 1, 0, 0], [0, 0.3, 0.7, 0, 0]]).repeat(8, 1)
    loader = DataLoader(TensorDataset(image, target), 8)
    with pytest.raises(UserError, match="shares that sum to 1.*multi-label data"):
        trainer(limit_val_batches=0).fit(ClassificationModule(nn.Linear(4, 5)), loader, loader)
    loader = DataLoader(TensorDataset(image, target[1].expand(16, 5)), 8)
    trainer(limit_val_batches=0).fit(ClassificationModule(nn.Linear(4, 5)), loader, loader)


@pytest.mark.parametrize("form", [lambda y: y, lambda y: y[:, None], lambda y: y.to(torch.uint8)])
@pytest.mark.parametrize("named", [False, True])
def test_labels_that_are_tested_are_in_the_table_of_predictions(form, named, trainer, tmp_path):
    label = form(LABEL)
    data = (
        [{"image": i, "label": y} for i, y in zip(IMAGE, label, strict=True)] if named else TensorDataset(IMAGE, label)
    )
    writer = PredictionWriter(tmp_path / "table.csv")
    trainer(callbacks=[writer]).predict(ClassificationModule(small()), DataLoader(data, 8), return_predictions=False)
    with (tmp_path / "table.csv").open() as file:
        assert [int(row["label"]) for row in csv.DictReader(file)] == LABEL.tolist()


class Ours:
    """Whatever a user keeps."""


class Kept(Callback):
    def state_dict(self):
        return {"numbers": np.arange(3), "object": Ours(), "names": np.array(["a"])}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_", "ignore:.*which would else be refused")
def test_a_checkpoint_that_is_written_can_be_read(trainer, tmp_path):
    class Stored(Plain):
        def __init__(self, root, scale):
            super().__init__()
            self.save_hyperparameters()

    def module():
        rate = np.logspace(-3, -1, 3)[1]
        optimizer = lambda parameters: torch.optim.SGD(parameters, lr=rate)  # noqa: E731
        return DistillationModule(small(), small(), kd_weight=np.linspace(0.1, 1, 3)[1], optimizer=optimizer)

    data = Stored(Path("data"), np.float32(0.5))
    run = trainer(callbacks=[Kept()])
    run.fit(module(), data)
    with pytest.warns(UserWarning, match=r"a Ours in callbacks\.Kept\.object is left out of the checkpoint"):
        run.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert content["datamodule_hyper_parameters"] == {"root": "data", "scale": 0.5}
    assert content["hyper_parameters"]["kd_weight"] == 0.55
    assert content["callbacks"]["Kept"]["numbers"].tolist() == [0, 1, 2]
    trainer(max_epochs=2).fit(module(), data, ckpt_path=tmp_path / "run.ckpt", weights_only=False)


def test_plain_content_is_not_copied():
    state = OrderedDict(weight=torch.ones(2))
    content = {"state_dict": state, "list": [1, {"a": (2.0, None)}], "counter": Counter({3: 1})}
    assert plain(content) is content
    changed = plain({**content, "path": Path("x")})
    assert changed["state_dict"] is state
    assert changed["path"] == "x"


def test_a_checkpoint_with_code_is_not_passed_over_in_silence(tmp_path):
    torch.save({"state_dict": {}, "optimizer_states": [], "global_step": 3, "own": Ours()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="holds pickled code"):
        newest(tmp_path.glob("*.ckpt"), resumable=True)


@pytest.mark.parametrize("bias", ["swap", False, BiasStrategy])
def test_a_strategy_of_another_kind_is_refused(bias):
    with pytest.raises(UserError, match="bias is a BiasStrategy, or None for plain distillation, and not"):
        DistillationModule(small(), small(), bias=bias)


def test_a_rate_that_is_no_number_is_refused(trainer):
    module = ClassificationModule(small(), optimizer=lambda p: torch.optim.SGD(p, lr=float("nan")))
    with pytest.raises(UserError, match="the learning rate is not a finite number"):
        trainer().fit(module, Plain())


def test_metrics_as_a_collection_or_a_single_one(trainer):
    one = MulticlassAccuracy(5, average="micro")
    for metrics, key in ((one, "MulticlassAccuracy"), (MetricCollection({"own": one}), "own")):
        module = ClassificationModule(small(), metrics=metrics)
        (values,) = trainer().validate(module, Plain(), verbose=False)
        assert values[f"val/{key}"] == values["val/acc1"]


@pytest.mark.parametrize("index", [[0, 1.0], ["0", "1"], 3.5])
def test_a_class_map_of_other_things_than_numbers_is_refused(index):
    with pytest.raises(UserError, match="a class map holds whole numbers"):
        ClassMap(index if isinstance(index, list) else [index])


def test_steps_that_cannot_be_counted_are_refused(trainer):
    changing = GradientAccumulationScheduler({0: 1, 1: 2})
    module = ClassificationModule(small(), lr_scheduler=CosineOverRun, lr_interval="step")
    with pytest.raises(UserError, match="GradientAccumulationScheduler changes how many steps an epoch has"):
        trainer(max_epochs=3, callbacks=[changing]).fit(module, Plain())
    module = DistillationModule(small(), small(), bias=BiasStrategy.paper())
    with pytest.raises(UserError, match="GradientAccumulationScheduler changes how many steps an epoch has"):
        trainer(max_epochs=3, callbacks=[changing, DynamicWeights(interval="step")]).fit(module, Plain())
    steady = GradientAccumulationScheduler({0: 2})
    trainer(max_epochs=3, callbacks=[steady, DynamicWeights(interval="step")]).fit(module, Plain())


def test_the_reader_of_a_pipe_may_have_enough():
    command = [sys.executable, "-m", "lightning_biaskd", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # long before the first word is written
        assert not process.stderr.read()
    assert process.returncode == 141
