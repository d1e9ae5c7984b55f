import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import CLASSES, CompilationCount, TinyData, by_gamma, network, snapshot, unchanged
from torch import nn

from lightning_biaskd import (
    DKD,
    KD,
    BiasStrategy,
    ClassificationModule,
    DistillationModule,
    DynamicWeights,
    UserError,
    load_weights,
)
from lightning_biaskd.distillers import FitNet

SGD = staticmethod(lambda params: torch.optim.SGD(params, lr=0.1)).__func__


def first_batch():
    return next(iter(TinyData().train_dataloader()))


@pytest.mark.parametrize("bias", [None, by_gamma("swap")])
def test_the_loss_is_the_weighted_sum(bias, trainer):
    module = DistillationModule(network(), network(), KD(2.0), bias, ce_weight=0.3, kd_weight=1.7).eval()
    image, target = batch = first_batch()
    step = module.losses(batch, 0)
    student, teacher = module.outputs_of(image), module.teacher(image)
    if bias is None:
        kd = KD(2.0)(student, teacher, target).mean()
    else:
        kd = bias(KD(2.0), student, teacher, target).total
    expected = 0.3 * F.cross_entropy(student.logits, target) + 1.7 * kd
    torch.testing.assert_close(step.loss, expected)


@pytest.mark.parametrize(
    ("bias", "keys"),
    [(BiasStrategy(), {"bias/trust", "bias/label_trust"}), (BiasStrategy.paper(), {"bias/gamma"})],
    ids=["default", "paper"],
)
def test_every_documented_key_is_logged(bias, keys, trainer):
    run = trainer(log_every_n_steps=2)
    run.fit(DistillationModule(network(), network(), bias=bias), TinyData())
    documented = {
        *("train/loss", "train/loss_step", "train/loss_ce", "train/loss_kd", "train/acc1"),
        *("train/loss_right", "train/loss_rectified", "bias/wrong_rate", *keys),
        *("val/acc1", "val/acc5", "val/teacher_acc1", "val/teacher_acc5", "val/gap"),
        *("val/student_only", "val/teacher_only", "val/both", "val/neither"),
    }
    assert set(run.callback_metrics) == documented


def test_top5_is_left_out_below_five_classes(trainer):
    run = trainer()
    data = TinyData(labels=torch.arange(48) % 4)
    data.num_classes = 4
    run.fit(ClassificationModule(network(4)), data)
    assert "val/acc1" in run.callback_metrics
    assert "val/acc5" not in run.callback_metrics


def test_evaluation_counts_student_teacher_and_gap(trainer):
    module = DistillationModule(network(), network())
    data = TinyData()
    (metrics,) = trainer().test(module, data, verbose=False)
    module.eval()
    batches = list(data.test_dataloader())
    target = torch.cat([y for _, y in batches])
    student = torch.cat([module(x).argmax(1) for x, _ in batches]) == target
    teacher = torch.cat([module.teacher(x).logits.argmax(1) for x, _ in batches]) == target
    assert metrics["test/acc1"] == pytest.approx(student.float().mean().item())
    assert metrics["test/teacher_acc1"] == pytest.approx(teacher.float().mean().item())
    assert metrics["test/gap"] == pytest.approx(student.float().mean().item() - teacher.float().mean().item())
    counts = [metrics[f"test/{name}"] for name in ("student_only", "teacher_only", "both", "neither")]
    expected = [(student & ~teacher), (teacher & ~student), (student & teacher), ~(student | teacher)]
    assert counts == [group.sum().item() for group in expected]


def test_epoch_means_weigh_samples_not_batches(trainer):
    run = trainer()
    run.fit(ClassificationModule(network(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0)), TinyData(batch_size=20))
    module = run.lightning_module.train()  # batch statistics, as in training
    losses = [(F.cross_entropy(module(x), y).item(), len(y)) for x, y in run.datamodule.train_dataloader()]
    expected = sum(loss * size for loss, size in losses) / 48
    assert run.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def checkpoint(trainer, tmp_path):
    """A distilled student: its module and its checkpoint."""
    module = DistillationModule(network(), network(), DKD(beta=2.0), by_gamma("swap"), kd_weight=2.0)
    callbacks = [ModelCheckpoint(dirpath=tmp_path, filename="run")]
    trainer(enable_checkpointing=True, callbacks=callbacks).fit(module, TinyData())
    return module, tmp_path / "run.ckpt"


def test_the_students_checkpoint_loads_alone(checkpoint):
    module, path = checkpoint
    student = network()
    load_weights(student, path)
    assert unchanged(snapshot(module.student), student)


def test_a_run_started_in_python_loads_from_its_checkpoint(checkpoint):
    module, path = checkpoint
    assert torch.load(path, weights_only=True)["hyper_parameters"]["kd_weight"] == 2.0
    method = {"distiller": DKD(beta=2.0), "bias": by_gamma("swap")}
    loaded = DistillationModule.load_from_checkpoint(path, student=network(), teacher=network(), **method)
    assert unchanged(snapshot(module), loaded)
    assert loaded.kd_weight == 2.0


def test_loading_with_another_method_is_told(checkpoint):
    _, path = checkpoint
    with pytest.warns(UserWarning, match=r"trained with DKD\(alpha=1.0, beta=2.0.*distils with KD"):
        DistillationModule.load_from_checkpoint(path, student=network(), teacher=network())


def test_loading_without_a_method_that_learned_layers_names_it(trainer, tmp_path):
    method = FitNet(("1",))
    module, path = DistillationModule(network(), network(width=5), method, bias=None), tmp_path / "run.ckpt"
    fitted = trainer()
    fitted.fit(module, TinyData())
    fitted.save_checkpoint(path)
    with pytest.raises(UserError, match="method, FitNet, has other layers than this KD: pass distiller= as in"):
        DistillationModule.load_from_checkpoint(path, student=network(), teacher=network(width=5))
    parts = {"student": network(), "teacher": network(width=5)}
    assert unchanged(snapshot(module), DistillationModule.load_from_checkpoint(path, **parts, distiller=method))


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        (lambda: network(classes=9), "another number of classes"),
        (lambda: network(width=5), "another network"),
        (lambda: nn.Sequential(*network(), nn.Linear(CLASSES, CLASSES)), "6.weight is missing"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(checkpoint, student, reason, trainer):
    _, path = checkpoint
    module = DistillationModule(student(), network(), bias=None)
    with pytest.raises(UserError, match=f"does not fit Sequential: .*{reason}"):
        trainer().test(module, TinyData(), ckpt_path=path, verbose=False)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_initial_weights_start_a_run_but_not_a_resumed_one(trainer, tmp_path):
    initial, resumed = network(), network()
    torch.save(initial.state_dict(), tmp_path / "initial.pt")
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    module = DistillationModule(network(), network(), student_weights=str(tmp_path / "initial.pt"), **still)
    saving = {"callbacks": [ModelCheckpoint(dirpath=tmp_path / "run", filename="run")], "enable_checkpointing": True}
    trainer(**saving).fit(module, TinyData())
    torch.testing.assert_close(module.student[5].weight, initial[5].weight)
    (tmp_path / "initial.pt").unlink()
    module = DistillationModule(resumed, network(), student_weights=str(tmp_path / "initial.pt"), **still)
    trainer(max_epochs=2, **saving).fit(module, TinyData(), ckpt_path=tmp_path / "run" / "run.ckpt")
    torch.testing.assert_close(resumed[5].weight, initial[5].weight)


def initialized(tmp_path, seed=5):
    """A module and the weights that it is to begin with."""
    torch.manual_seed(seed)
    initial = network()
    torch.save(initial.state_dict(), tmp_path / "initial.pt")
    return ClassificationModule(network(), weights=str(tmp_path / "initial.pt")), initial


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_initial_weights_are_evaluated_without_a_fit(stage, trainer, tmp_path):
    module, initial = initialized(tmp_path)
    getattr(trainer(), stage)(module, TinyData())
    assert unchanged(snapshot(initial), module.model)


def test_initial_weights_are_not_put_over_others(trainer, tmp_path):
    module, initial = initialized(tmp_path)
    trainer().fit(module, TinyData())
    before = snapshot(module.model)
    assert not unchanged(snapshot(initial), module.model)
    trainer(max_epochs=0).fit(module, TinyData())
    trainer().test(module, TinyData(), verbose=False)
    assert unchanged(before, module.model)
    again, _ = initialized(tmp_path)
    again.load_state_dict(module.state_dict())  # as Lightning does where it spawned the processes that trained
    trainer().test(again, TinyData(), verbose=False)
    assert unchanged(before, again.model)


def test_a_student_in_eval_mode_is_trained_in_train_mode(trainer):
    module = ClassificationModule(network().eval())
    with pytest.warns(UserWarning, match="came in eval mode"):
        trainer().fit(module, TinyData())
    assert module.model.training


def test_a_module_in_eval_mode_counts_as_one_in_train_mode(trainer):
    counts = []
    for prepare in (DistillationModule.train, DistillationModule.eval):
        torch.manual_seed(0)
        module = prepare(DistillationModule(network(), network(), bias=BiasStrategy()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*came in eval mode")
            trainer().fit(module, TinyData())
        counts.append(snapshot(module.distillation.bias))
        assert not module.teacher.model.training
    assert any(value.count_nonzero() for value in counts[0].values())
    assert all(torch.equal(counts[1][name], value) for name, value in counts[0].items())


def test_the_label_that_counts_nowhere_is_that_of_the_data_of_the_moment(trainer):
    module, own = ClassificationModule(network()), ClassificationModule(network(), ignore_index=1)
    for ignored in (0, 2, None):
        data = TinyData()
        data.ignore_index = ignored
        for each in (module, own):
            trainer().fit(each, data)
        assert (module.ignore_index, own.ignore_index) == (ignored, 1)


def test_optimizer_and_scheduler_are_injected(trainer):
    schedulers = torch.optim.lr_scheduler
    module = ClassificationModule(
        network(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.5),
        lr_scheduler=lambda o: schedulers.StepLR(o, 1, gamma=0.1),
        lr_interval="step",
    )
    run = trainer()
    run.fit(module, TinyData())
    assert isinstance(run.optimizers[0], torch.optim.AdamW)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 * 0.1**6)


def test_a_plateau_scheduler_watches_its_monitor(trainer):
    from lightning.pytorch.cli import ReduceLROnPlateau

    module = ClassificationModule(network(), lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="val/acc1"))
    trainer().fit(module, TinyData())
    assert module.configure_optimizers()["lr_scheduler"]["monitor"] == "val/acc1"


@pytest.mark.parametrize("label", [-1, CLASSES, 255])
def test_labels_out_of_range_are_one_line(label, trainer):
    labels = torch.arange(48) % CLASSES
    labels[30] = label
    with pytest.raises(UserError, match=r"labels lie in .* outside \[0, 5\]"):
        trainer().fit(ClassificationModule(network()), TinyData(labels))


def test_a_network_with_other_classes_than_the_data_is_one_line(trainer):
    with pytest.raises(UserError, match="gives 9 classes and the data have 6: build the network with num_classes=6"):
        trainer().fit(DistillationModule(network(9), network(9)), TinyData())


def test_teacher_and_student_that_disagree_are_one_line(trainer):
    with pytest.raises(UserError, match="the teacher gives 9 classes and the student 6"):
        trainer().fit(DistillationModule(network(), network(9)), TinyData())


def test_a_teacher_that_is_not_finite_is_one_line_and_loses_nothing(trainer):
    teacher = network()
    teacher[5].bias.data[0] = torch.nan
    module = DistillationModule(network(), teacher)
    before = snapshot(module.student)
    with pytest.raises(UserError, match="NaN or infinity in batch 0"):
        trainer(num_sanity_val_steps=0).fit(module, TinyData())
    assert torch.equal(before["5.weight"], module.student[5].weight)


def test_two_modules_do_not_share_a_method():
    kd = KD()
    first, second = (DistillationModule(network(), network(), kd) for _ in range(2))
    assert first.distiller is not second.distiller is not kd
    assert first.bias is not second.bias


def test_plain_distillation_has_no_dynamic_weights(trainer):
    run = trainer()
    run.fit(DistillationModule(network(), network(), bias=None), TinyData())
    assert not any(isinstance(callback, DynamicWeights) for callback in run.callbacks)
    assert run.callback_metrics["bias/wrong_rate"] > 0
    assert "bias/gamma" not in run.callback_metrics


def test_losses_are_made_to_be_overridden(trainer):
    class Regularised(DistillationModule):
        def losses(self, batch, batch_idx):
            step = super().losses(batch, batch_idx)
            penalty = sum(p.square().sum() for p in self.student.parameters())
            logged = {**step.logged, "train/penalty": penalty.detach()}
            return step._replace(loss=step.loss + penalty, logged=logged)

    run = trainer()
    run.fit(Regularised(network(), network()), TinyData())
    assert run.callback_metrics["train/penalty"] > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_losses_are_float32_and_finite_in_every_precision(precision, trainer):
    seen = []

    class Spy(DistillationModule):
        def losses(self, batch, batch_idx):
            step = super().losses(batch, batch_idx)
            seen.extend([step.loss, step.logged["train/loss_kd"]])
            return step

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(precision=precision).fit(Spy(network(), network(), bias=by_gamma("swap")), TinyData())
    assert all(value.dtype == torch.float32 and value.isfinite() for value in seen)


@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_an_added_term_of_the_students_logits_has_its_gradient(weight):
    class Bounded(DistillationModule):
        def losses(self, batch, batch_idx):
            step = super().losses(batch, batch_idx)
            return step._replace(loss=step.loss + weight * step.student.logits.square().mean())

    image, target = first_batch()
    module = Bounded(network(), network())
    plain = module.distillation(image, target).loss
    gradients = torch.autograd.grad(plain, module.student[5].weight)[0]
    with_term = torch.autograd.grad(module.losses((image, target), 0).loss, module.student[5].weight)[0]
    assert torch.equal(gradients, with_term) == (weight == 0)


def test_losses_of_another_kind_are_one_line(trainer):
    class Old(DistillationModule):
        def losses(self, batch, batch_idx):
            return {"train/loss": super().losses(batch, batch_idx).loss}

    with pytest.raises(UserError, match="returned a dict: return a Step"):
        trainer().fit(Old(network(), network()), TinyData())


class Plain(nn.Module):
    """A student's network with a batch norm and dropout, as most have."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.drop = nn.Dropout(0.0)

    def forward(self, image):
        return self.drop(self.net(image))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the compiler's making
@pytest.mark.parametrize("bias", [None, by_gamma("swap")])
def test_a_compiled_run_is_the_same_run(bias, trainer, tmp_path, monkeypatch):
    """With a backend that counts graphs; that Inductor computes the same is torch's affair."""
    count = CompilationCount()
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kw: compile_(self, **{**kw, "mode": None}, backend=count))
    modules, graphs = [], []

    class Graphs(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            graphs.append(count.graphs)

    for compiled in (False, True):
        torch.manual_seed(0)
        nets = Plain(), network()
        modules.append(DistillationModule(*nets, DKD(warmup_epochs=2), bias, compile=compiled))
        trainer(max_epochs=4, callbacks=[Graphs()]).fit(modules[-1], TinyData(batch_size=20))  # the last batch has 8
    assert graphs[:4] == [0, 0, 0, 0]
    assert graphs[4] > 0
    assert graphs[5:] == graphs[4:5] * 3  # γ and the warm-up move, and nothing is compiled again
    eager, compiled = (snapshot(module) for module in modules)
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the compiler's making
def test_a_sweep_of_compiled_runs_in_one_process(trainer, monkeypatch):
    count, compile_ = CompilationCount(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kw: compile_(self, **{**kw, "mode": None}, backend=count))
    modes = "swap", "blend", "onehot", "revise", "none"
    forms = [by_gamma(mode, normalize) for mode in modes for normalize in ("group", "batch")]
    for bias in forms:  # more than Dynamo's limit for one function
        module = DistillationModule(network(), network(), bias=bias, compile=True)
        trainer(max_steps=1, limit_val_batches=0).fit(module, TinyData())
    assert count.graphs >= len(forms)


def test_weights_of_convolutions_have_their_channels_last(trainer):
    def layout(**kwargs):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, CLASSES))
        trainer().fit(ClassificationModule(net, **kwargs), TinyData())
        return net[1].weight.is_contiguous(memory_format=torch.channels_last)

    assert layout()
    assert not layout(channels_last=False)
