"""BiasMonitor and CurvePlot: what they count, remember and draw."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tiny import CLASSES, TinyData, by_gamma, network
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_biaskd import KD, ClassificationModule, DistillationModule, EnsembleTeacher, UserError
from lightning_biaskd.bias import rectify_logits, trust
from lightning_biaskd.callbacks import BiasMonitor, CurvePlot, History
from lightning_biaskd.metrics import CalibrationError, DistributionGap

PNG = b"\x89PNG"


def still(params):
    return torch.optim.SGD(params, lr=0.0)


def distillation(bias=None, **kwargs):
    return DistillationModule(network(), network(), KD(1.0), bias or by_gamma("blend"), **kwargs)


def answers(module, loader):
    """Student's and teacher's logits and labels, batch by batch as the loader has them."""
    with torch.no_grad():
        parts = [(module(image), module.teacher(image).logits, target) for image, target in loader]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def share(flags):
    return flags.float().mean().item()


def test_the_monitor_counts_what_the_steps_saw(trainer):
    module, data = distillation(by_gamma("blend", space="logits"), optimizer=still), TinyData()
    run = trainer(callbacks=[BiasMonitor()])
    run.fit(module, data)
    seen = {key: value.item() for key, value in run.callback_metrics.items()}
    student, teacher, target = answers(module.eval(), data.val_dataloader())
    gap, calibration = DistributionGap(), CalibrationError(CLASSES)
    gap.update(student, teacher)
    calibration.update(student, target)
    assert seen["val/kl"] == pytest.approx(gap.compute()["kl"].item(), rel=1e-4)
    assert seen["val/js"] == pytest.approx(gap.compute()["js"].item(), rel=1e-4)
    assert seen["val/calibration_error"] == pytest.approx(calibration.compute().item(), rel=1e-4)
    for stage, mode in (("val", False), ("train", True)):  # in train mode last: it moves the statistics
        student, teacher, target = answers(module.train(mode), data.train_dataloader())
        right, wrong = teacher.argmax(1) == target, teacher.argmax(1) != target
        good = student.argmax(1) == target
        assert seen[f"{stage}/on_teacher_right"] == pytest.approx(share(good[right]))
        assert seen[f"{stage}/on_teacher_wrong"] == pytest.approx(share(good[wrong]))
        assert seen[f"{stage}/agreement"] == pytest.approx(share(student.argmax(1) == teacher.argmax(1)))
    for label in range(CLASSES):
        assert seen[f"bias/wrong_rate/{label}"] == pytest.approx(share(wrong[target == label]))
    corrected = rectify_logits(teacher, target, "blend", 1.0, "logits")
    assert 0 < seen["bias/not_on_top"] == pytest.approx(share(corrected[wrong].argmax(1) != target[wrong]))


@pytest.mark.parametrize("trust", [None, "student", "class"])
def test_the_monitor_shows_how_much_teacher_each_class_gets(trust, trainer, tmp_path):
    bias = by_gamma("drop", "batch", "ramp", trust=trust, refund=True)
    module, data, seen = distillation(bias, optimizer=still), TinyData(), []

    class Listening(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append((outputs["trust"], batch[1]))

    run = trainer(callbacks=[BiasMonitor(), Listening()])
    run.fit(module, data)
    shares, target = (torch.cat(column) for column in zip(*seen, strict=True))
    means = [shares[target == label].mean().item() for label in range(CLASSES)]
    logged = [run.callback_metrics[f"bias/trust/{label}"].item() for label in range(CLASSES)]
    assert logged == pytest.approx(means)
    assert run.callback_metrics["bias/trust_lowest"] == pytest.approx(min(means))
    assert run.callback_metrics["bias/trust_highest"] == pytest.approx(max(means))
    assert ("bias/trust" in run.callback_metrics) == (trust is not None)
    assert (tmp_path / "bias_monitor.png").read_bytes().startswith(PNG)


def test_the_monitor_corrects_as_far_as_labels_are_trusted(trainer):
    bias = by_gamma("swap", "batch", "equal", label_trust="student")
    module, data = distillation(bias, optimizer=still), TinyData()
    run = trainer(callbacks=[BiasMonitor()])
    run.fit(module, data)
    student, teacher, target = answers(module.train(), data.train_dataloader())
    wrong = teacher.argmax(1) != target
    corrected = rectify_logits(teacher, target, "swap", 1.0, amount=trust.label(student, teacher, target))
    expected = share(corrected[wrong].argmax(1) != target[wrong])
    assert 0 < run.callback_metrics["bias/not_on_top"] == pytest.approx(expected)


def test_an_ensemble_corrected_one_by_one_has_no_corrected_share(trainer):
    bias = by_gamma("swap", "batch", "equal", per_teacher=True)
    module = DistillationModule(network(), EnsembleTeacher([network(), network()], "confidence"), bias=bias)
    run = trainer(callbacks=[BiasMonitor()])
    run.fit(module, TinyData())
    assert "bias/not_on_top" not in run.callback_metrics
    rates = [run.callback_metrics[f"bias/wrong_rate/{label}"].item() for label in range(CLASSES)]
    counts = torch.bincount(TinyData().loader.dataset.tensors[1], minlength=CLASSES)
    mean = sum(rate * count for rate, count in zip(rates, counts.tolist(), strict=True)) / 48
    assert run.callback_metrics["bias/wrong_rate"].item() == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("bias", ["drop", "none"])
def test_a_mode_that_corrects_nothing_has_no_corrected_share(bias, trainer):
    run = trainer(callbacks=[BiasMonitor()])
    run.fit(distillation(by_gamma(bias)), TinyData())
    assert "bias/not_on_top" not in run.callback_metrics


def test_every_epoch_is_counted_alone(trainer):
    monitor = BiasMonitor()
    trainer(callbacks=[monitor], max_epochs=2).fit(distillation(optimizer=still), TinyData())
    first, second = monitor.epochs[0], monitor.epochs[1]
    assert first["bias/wrong_rate/0"] == second["bias/wrong_rate/0"]
    assert first["val/agreement"] == second["val/agreement"]


def test_many_classes_have_no_keys_of_their_own(trainer, tmp_path):
    run = trainer(callbacks=[BiasMonitor(per_class=CLASSES - 1)])
    run.fit(distillation(), TinyData())
    assert not any(key.startswith("bias/wrong_rate/") for key in run.callback_metrics)
    assert (tmp_path / "bias_monitor.png").is_file()


def test_classes_are_named_where_the_data_name_them(trainer):
    data = TinyData()
    data.class_names = ["ankle boot", "bag", "coat", "dress", "pullover", "sandal"]
    run = trainer(callbacks=[BiasMonitor()])
    run.fit(distillation(), data)
    assert "bias/wrong_rate/ankle boot" in run.callback_metrics


def test_a_loader_without_data_module_will_do(trainer):
    run = trainer(callbacks=[BiasMonitor()])
    run.fit(distillation(), TinyData().loader, TinyData().loader)
    assert "bias/wrong_rate/0" in run.callback_metrics


def test_a_teacher_that_is_never_wrong_is_drawn_too(trainer, tmp_path):
    class Right(DistillationModule):
        def callback_outputs(self, student, teacher, target):
            right = 9.0 * torch.eye(CLASSES)[target]
            return {**super().callback_outputs(student, teacher, target), "teacher_logits": right}

    run = trainer(callbacks=[BiasMonitor()])
    run.fit(Right(network(), network()), TinyData())
    assert run.callback_metrics["val/on_teacher_right"] >= 0
    assert "val/on_teacher_wrong" not in run.callback_metrics
    assert (tmp_path / "bias_monitor.png").is_file()


class Reads(TorchDispatchMode):
    """Notes every operation that makes the host wait for the device."""

    WAIT = ("_local_scalar_dense", "nonzero", "bincount", "unique", "masked_select", "equal")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names += [name] if any(name.startswith(word) for word in self.WAIT) else []
        return function(*args, **(kwargs or {}))


def test_the_monitor_never_waits_for_the_device_in_a_step(trainer):
    class Watched(BiasMonitor):
        reads = Reads()

        def on_train_batch_end(self, *args):
            with self.reads:
                super().on_train_batch_end(*args)

        def on_validation_batch_end(self, *args):
            with self.reads:
                super().on_validation_batch_end(*args)

    trainer(callbacks=[Watched()]).fit(distillation(), TinyData())
    assert Watched.reads.names == []
    with Reads() as reads:
        torch.ones(2).sum().item()
    assert reads.names


def test_without_a_teacher_the_monitor_says_so(trainer):
    with pytest.warns(UserWarning, match="found no teacher to watch"):
        trainer(callbacks=[BiasMonitor()]).fit(ClassificationModule(network()), TinyData())


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_history_has_every_epoch_of_a_resumed_run(trainer, tmp_path):
    def fit(epochs, **kwargs):
        history = History()
        saving = ModelCheckpoint(dirpath=tmp_path, filename="last", enable_version_counter=False)
        run = trainer(max_epochs=epochs, callbacks=[history, saving], enable_checkpointing=True)
        run.fit(distillation(), TinyData(), **kwargs)
        return history.epochs

    first = fit(2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["History"]["epochs"]
    assert saved == first  # the checkpoint of an epoch holds that epoch
    four = fit(4, ckpt_path=tmp_path / "last.ckpt")
    assert list(four) == [0, 1, 2, 3]
    assert {epoch: four[epoch] for epoch in (0, 1)} == first
    assert all({"train/loss", "val/acc1", "bias/gamma"} <= set(metrics) for metrics in four.values())


def test_the_history_leaves_out_validations_that_were_not_run(trainer):
    history = History()
    trainer(max_epochs=3, check_val_every_n_epoch=2, callbacks=[history]).fit(distillation(), TinyData())
    assert history.curve("val/acc1")[0] == [2]
    assert history.curve("train/loss")[0] == [1, 2, 3]
    assert all(math.isfinite(value) for value in history.curve("train/loss")[1])


@pytest.mark.parametrize("module", [distillation, lambda: ClassificationModule(network())])
def test_curves_are_drawn_for_students_and_teachers(module, trainer, tmp_path):
    trainer(max_epochs=2, callbacks=[CurvePlot()], logger=CSVLogger(tmp_path, "a")).fit(module(), TinyData())
    path = tmp_path / "a" / "version_0" / "curves.png"
    assert path.read_bytes().startswith(PNG)


def test_tensorboard_gets_the_picture(trainer, tmp_path):
    event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, "a")
    trainer(max_epochs=2, callbacks=[BiasMonitor(every_n_epochs=1)], logger=logger).fit(distillation(), TinyData())
    events = event_files.EventAccumulator(logger.log_dir)
    events.Reload()
    assert [image.step for image in events.Images("bias_monitor")] == [6, 12]


class Fake:
    """Takes what would go to a service."""

    name = version = run_id = "run"
    save_dir = ""

    def __init__(self):
        self.pictures = []

    def nothing(self, *_, **__):
        pass

    log_metrics = log_hyperparams = log_graph = after_save_checkpoint = finalize = save = nothing


class FakeWandb(Fake, WandbLogger):
    experiment = None

    def log_image(self, key, images):
        self.pictures += [(key, Path(image).read_bytes()[:4]) for image in images]


class FakeMLFlow(Fake, MLFlowLogger):
    @property
    def experiment(self):
        return self

    def log_artifact(self, run, path):
        self.pictures.append((Path(path).stem, Path(path).read_bytes()[:4]))


@pytest.mark.parametrize("logger", [FakeWandb, FakeMLFlow])
def test_weights_and_biases_and_mlflow_get_the_picture(logger, trainer, tmp_path):
    fake = logger()
    trainer(callbacks=[BiasMonitor()], logger=fake).fit(distillation(), TinyData())
    assert fake.pictures == [("bias_monitor", PNG)]
    assert (tmp_path / "run" / "run" / "bias_monitor.png").is_file()


def test_a_missing_matplotlib_is_one_line(trainer, monkeypatch):
    monkeypatch.setattr("lightning_biaskd.plotting.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "lightning-biaskd\[plot\]"'):
        trainer(callbacks=[CurvePlot()]).fit(distillation(), TinyData())


def test_a_notebook_shows_one_picture_and_keeps_it_up_to_date(trainer, monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda picture: shown.append("update"))
    display = SimpleNamespace(
        Image=lambda data: data[:4], display=lambda picture, display_id: shown.append(picture) or handle
    )
    monkeypatch.setattr("lightning_biaskd.callbacks.history.in_notebook", lambda: True)
    monkeypatch.setattr("lightning_biaskd.callbacks.history.import_module", lambda name: display)
    trainer(max_epochs=3, callbacks=[CurvePlot(every_n_epochs=1)]).fit(distillation(), TinyData())
    assert shown == [PNG, "update", "update"]


def drawn(trainer, monkeypatch, every_n_epochs, epochs, seconds=0.0, epoch=0.0):
    """The epochs after which a picture is drawn, if drawing and an epoch take so long."""
    now = 0.0
    monkeypatch.setattr("lightning_biaskd.callbacks.history.time.monotonic", lambda: now)

    class Slow(CurvePlot):
        after = ()

        def on_train_epoch_start(self, trainer, module):
            nonlocal now
            super().on_train_epoch_start(trainer, module)
            now += epoch

        def publish(self, trainer, figure):
            nonlocal now
            now += seconds
            self.after += (len(self.epochs),)

    picture = Slow(every_n_epochs)
    trainer(max_epochs=epochs, callbacks=[picture], limit_train_batches=1, limit_val_batches=1).fit(
        distillation(), TinyData()
    )
    return picture.after


def test_pictures_are_drawn_every_n_epochs_and_at_the_end(trainer, monkeypatch):
    assert drawn(trainer, monkeypatch, 3, 7) == (3, 6, 7)
    assert drawn(trainer, monkeypatch, 3, 6) == (3, 6)
    assert drawn(trainer, monkeypatch, 10, 2) == (2,)


def test_by_default_pictures_take_a_twentieth_of_the_time_at_most(trainer, monkeypatch):
    assert drawn(trainer, monkeypatch, None, 7, seconds=1.0, epoch=20.0) == (1, 2, 3, 4, 5, 6, 7)
    assert drawn(trainer, monkeypatch, None, 7, seconds=1.0, epoch=7.0) == (1, 4, 7)
    assert drawn(trainer, monkeypatch, None, 7, seconds=1.0, epoch=0.01) == (1, 7)


def test_every_zero_epochs_is_refused():
    with pytest.raises(UserError, match="every_n_epochs is 0: give 1 or more"):
        BiasMonitor(every_n_epochs=0)


def test_the_monitor_draws_thousands_of_classes(trainer, tmp_path):
    data = TinyData()
    data.num_classes = 3000
    run = trainer(callbacks=[BiasMonitor()], limit_train_batches=2, limit_val_batches=1)
    run.fit(DistillationModule(network(3000), network(3000), KD(1.0)), data)
    assert (tmp_path / "bias_monitor.png").is_file()
    assert not any(key.startswith("bias/wrong_rate/") for key in run.callback_metrics)
