"""Methods that learn something beside the student: built before the optimizer, trained, saved, loaded."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import TinyData, network, snapshot, unchanged
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_biaskd import KD, BiasStrategy, DistillationModule, InputSpec, UserError, WeightedSum
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.distillers import LogitStandardization
from lightning_biaskd.features.base import FeatureDistiller, as_map, embeddings, layer_names, same_size
from lightning_biaskd.networks.outputs import Outputs


class Hint(FeatureDistiller):
    """A 1x1 convolution brings the student's map to the teacher's; counts how often it was built, and for how many."""

    def __init__(self, layer=-1, **kwargs):
        super().__init__(layer, **kwargs)
        self.built = []

    def build(self, student, teacher, num_samples=None):
        ((s, t),) = self.pairs(student, teacher)
        self.adapter = nn.Conv2d(s.shape[1], t.shape[1], 1)
        self.built.append((len(s), num_samples))

    def forward(self, student, teacher, target, keep=None):
        ((s, t),) = self.pairs(student, teacher)
        return (self.adapter(s) - t).square().flatten(1).mean(1)


def module(**kwargs):
    student, teacher = network(width=3), network(width=5)
    return DistillationModule(student, teacher, WeightedSum([(KD(), 1.0), (Hint(), 1.0)]), **kwargs)


def hint(of):
    return of.distiller.parts[1]


@pytest.fixture
def fitted(trainer, tmp_path):
    fit = module()
    rest = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(dirpath=tmp_path, filename="run")]}
    run = trainer(**rest)
    run.fit(fit, TinyData())
    return fit, run, tmp_path / "run.ckpt"


def test_what_a_method_learns_is_trained_and_saved_with_the_student(fitted):
    fit, run, path = fitted
    assert hint(fit).built == [(48, None)]
    adapter = hint(fit).adapter
    assert adapter.weight.shape == (5, 3, 1, 1)
    optimised = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert {id(p) for p in adapter.parameters()} <= optimised
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(saved["distiller.parts.1.adapter.weight"], adapter.weight)
    assert set(saved) == {f"model.{name}" for name in fit.student.state_dict()} | {
        f"distiller.parts.1.adapter.{name}" for name in ("weight", "bias")
    } | {f"bias.{name}" for name in fit.bias.state_dict()}


def test_a_checkpoint_loads_without_data(fitted):
    fit, _, path = fitted
    method = WeightedSum([(KD(), 1.0), (Hint(), 1.0)])
    loaded = DistillationModule.load_from_checkpoint(
        path, student=network(width=3), teacher=network(width=5), distiller=method, bias=BiasStrategy()
    )
    assert unchanged(snapshot(fit), loaded)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create")
def test_a_run_goes_on_with_what_was_learned(fitted, trainer):
    fit, _, path = fitted
    again = module()
    trainer(max_epochs=1).fit(again, TinyData(), ckpt_path=path)  # as many epochs as the first run: nothing is left
    assert unchanged(snapshot(fit), again)
    assert len(hint(again).built) == 1


def test_rehearsing_leaves_the_student_and_its_modes_as_they_were(trainer):
    fit = module()
    fit.student[1].eval()
    before, modes = snapshot(fit.student), [m.training for m in fit.student.modules()]
    fit.rehearse(torch.randn(4, 1, 6, 6))
    assert unchanged(before, fit.student)
    assert modes == [m.training for m in fit.student.modules()]


def test_it_is_built_from_images_as_a_step_gets_them(trainer):
    from lightning_biaskd.models import CIFARResNet

    nets = [CIFARResNet(8, 10, 1, (w, w, w, w)) for w in (4, 6)]
    fit = DistillationModule(*nets, Hint())
    run = trainer(limit_train_batches=1, limit_val_batches=0)
    run.fit(fit, DigitsDataModule(val_split=57))
    assert fit.distiller.built == [(64, 1257)]
    told = {"image_shape": [1, 8, 8], "num_samples": 1257, "mean": [0.306], "std": [0.3762]}
    assert fit.rehearsed == told


def test_a_checkpoint_knows_how_the_images_came(trainer, tmp_path):
    method = {"distiller": Hint(), "student_input": InputSpec(mean=[0.1], std=[0.2])}
    run = trainer(limit_train_batches=1, limit_val_batches=0)
    run.fit(DistillationModule(network(10, 3), network(10, 5), **method), DigitsDataModule())
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = DistillationModule.load_from_checkpoint(
        tmp_path / "run.ckpt", student=network(10, 3), teacher=network(10, 5), **method, bias=BiasStrategy()
    )
    image = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(loaded(image), run.model.cpu()(image))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(torch.randn(8, 1, 6, 6), torch.arange(8) % 6, strict=True)


@pytest.mark.parametrize("dataset", [TensorDataset(torch.randn(8, 1, 6, 6), torch.arange(8) % 6), Stream()])
def test_any_loader_will_do(dataset, trainer):
    fit = module()
    trainer().fit(fit, DataLoader(dataset, 4), DataLoader(dataset, 4))
    assert len(hint(fit).built) == 1


class Folder(TensorDataset):
    """As folders of images are: sorted by class, with a transform that draws."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image + torch.rand(1) + random.random() + np.random.rand(), target


class Look(DistillationModule):
    """Keeps what it is rehearsed on, and the random state before and then."""

    def setup(self, stage):
        super().setup(stage)
        self.before = self.state()

    def rehearse(self, image, num_samples=None):
        self.seen, self.then = image, self.state()

    def state(self):
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_images_of_all_classes_are_seen_and_no_random_number_is_used_up(trainer):
    target = torch.arange(6).repeat_interleave(100)
    folder = Folder(10.0 * target.view(-1, 1, 1, 1).expand(-1, 1, 6, 6), target)
    fit = Look(network(), network(), Hint())
    trainer(max_epochs=0).fit(fit, DataLoader(folder, 4), DataLoader(folder, 4))
    assert (fit.seen[:, 0, 0, 0] // 10).unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert fit.then == fit.before


def test_a_loader_of_something_else_is_one_line(trainer):
    loader = DataLoader(["x"], 1)
    with pytest.raises(UserError, match="training loader gives a list: this method looks at some images before"):
        trainer().fit(module(), loader, loader)


def test_methods_that_read_logits_are_not_rehearsed(trainer):
    for method in (KD(), LogitStandardization(KD()), WeightedSum([(KD(), 1.0)])):
        fit = DistillationModule(network(), network(), method)
        trainer().fit(fit, TinyData())
        assert fit.rehearsed is None


class Scaled(KD):
    """Reads logits alone, and learns a factor for each class."""

    def build(self, student, teacher, num_samples=None):
        self.factor = nn.Parameter(torch.ones(student.logits.shape[1]))

    def forward(self, student, teacher, target, keep=None):
        return super().forward(student._replace(logits=student.logits * self.factor), teacher, target, keep)


@pytest.mark.parametrize(
    "method", [Scaled(), LogitStandardization(Scaled()), WeightedSum([(KD(), 1.0), (Scaled(), 1.0)])]
)
def test_methods_that_read_logits_may_build_too(method, trainer):
    fit = DistillationModule(network(), network(), method)
    trainer().fit(fit, TinyData())
    (factor,) = [p for name, p in fit.named_parameters() if name.endswith("factor")]
    assert not torch.equal(factor, torch.ones(6))


def test_outputs_without_the_features_are_one_line():
    logits = torch.zeros(2, 3)
    with pytest.raises(UserError, match="the student's outputs contain no feature '-1'"):
        Hint()(Outputs(logits), Outputs(logits), None)
    with pytest.raises(UserError, match="contain no embedding"):
        embeddings(Outputs(logits), Outputs(logits))


def test_layers_pair_up():
    assert layer_names([-2, "a.b"], preactivation=True) == ("-2:pre", "a.b:pre")
    method = FeatureDistiller([-1, "x"], [-2, "y"])
    assert (method.needs.layers, method.needs.teacher_layers) == (("-1", "x"), ("-2", "y"))
    with pytest.raises(ValueError, match="2 layers of the student need as many"):
        FeatureDistiller([-1, -2], -1)


def test_tokens_are_laid_out_row_by_row():
    tokens = torch.arange(2 * 11 * 3.0).view(2, 11, 3)  # two before a square of nine
    square = as_map(tokens)
    assert square.shape == (2, 3, 3, 3)
    assert torch.equal(square[1, :, 2, 0], tokens[1, 2 + 6])
    with pytest.raises(UserError, match="name another layer"):
        as_map(torch.zeros(2, 5))
    with pytest.raises(UserError, match="name another layer"):
        as_map(torch.zeros(2, 98, 4))


def test_maps_meet_at_the_smaller_size():
    small, large = torch.randn(1, 2, 2, 4), torch.randn(1, 3, 4, 4)
    a, b = same_size(small, large)
    assert a is small
    torch.testing.assert_close(b, large.view(1, 3, 2, 2, 4).mean(3))


def test_clipping_covers_what_was_learned(trainer):
    fit = module(optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    fit.rehearse(torch.randn(4, 1, 6, 6))
    before = {name: p.detach().clone() for name, p in fit.named_parameters()}
    trainer(gradient_clip_val=1e-3, limit_train_batches=1).fit(fit, TinyData())
    moved = sum((p - before[name]).square().sum() for name, p in fit.named_parameters())
    assert moved.sqrt().item() == pytest.approx(1e-3, rel=1e-3)
    assert (hint(fit).adapter.weight != before["distiller.parts.1.adapter.weight"]).any()
