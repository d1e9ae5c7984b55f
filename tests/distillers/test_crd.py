"""CRD's memories, normalisation and draws."""

import copy
import math

import pytest
import torch
from memories import IMAGES, remembering, state
from projector_settings import projected
from properties import trained
from tiny import CLASSES, CompilationCount, TinyData, network, snapshot, unchanged
from torch.nn.utils import vector_to_parameters
from torch.utils.data import DataLoader, Dataset

from lightning_biaskd import DistillationModule, UserError
from lightning_biaskd.distillers import CRD
from lightning_biaskd.distillers.crd import draw_negatives
from lightning_biaskd.networks.outputs import with_index


def test_two_steps_are_those_of_the_published_code():
    """HobbitLong/RepDistiller@b84f547c, crd/criterion.py with crd/memory.py, given our draws; τ is rounded there."""
    rows = [[0.4, -1.2, 2.2, 0.3, -0.7, 1.5], [1.3, 0.2, -0.9, -2.4, 0.8, 0.1], [-1.1, 0.9, 0.6, 1.9, -0.2, -1.4]]
    student = torch.tensor(rows, dtype=torch.float64)
    outputs = with_index(projected(student), torch.tensor([3, 0, 7])), projected(-1.5 * student.flip(0))
    distiller, *_ = remembering()
    count = sum(p.numel() for p in trained(distiller))
    vector_to_parameters((torch.arange(count, dtype=torch.float64) + 1).sin() / 2, trained(distiller))
    weights = [memory.detach().clone() for memory in (distiller.student_memory, distiller.teacher_memory)]
    losses = [distiller(*outputs, torch.tensor([0, 1, 2])).mean().item() for _ in range(2)]
    sums = [
        (m * w).sum().item() for m, w in zip((distiller.student_memory, distiller.teacher_memory), weights, strict=True)
    ]
    assert losses == pytest.approx(PUBLISHED["losses"], rel=1e-7)
    assert distiller.normalizers.tolist() == pytest.approx(PUBLISHED["normalizers"], rel=1e-7)
    assert sums == pytest.approx(PUBLISHED["memories"], rel=1e-7)


PUBLISHED = {
    "losses": [35.623731165725665, 25.115926263652877],
    "normalizers": [639795789.9274676, 4758395921.116386],
    "memories": [19.855534653911743, 20.425974592743913],
}


def unit(row):
    return [v / math.hypot(*row) for v in row]


def test_memories_are_moved_toward_what_was_seen_last():
    distiller, student, teacher, target = remembering()
    sample = torch.tensor([3, 0, 3, 5, 0, 3, 9, 5])
    keep = torch.tensor([True, True, True, False, True, False, False, False])
    expected = [memory.tolist() for memory in state(distiller)[:2]]
    for number, outputs in enumerate((student, teacher)):
        seen = distiller.connectors[number](outputs.embedding).tolist()
        for image, row in ((3, 2), (0, 4)):  # the last that is kept of each
            old, new = expected[number][image], unit(seen[row])
            expected[number][image] = unit([0.5 * a + 0.5 * b for a, b in zip(old, new, strict=True)])
    distiller(with_index(student, sample), teacher, target, keep)
    for memory, rows in zip(state(distiller)[:2], expected, strict=True):
        torch.testing.assert_close(memory, torch.tensor(rows, dtype=torch.float64))
    assert [n for n, label in enumerate(distiller.labels.tolist()) if label >= 0] == [0, 3]
    assert distiller.labels[[0, 3]].tolist() == target[[4, 2]].tolist()


def test_a_dropped_sample_leaves_no_trace():
    whole, student, teacher, target = remembering()
    alone = copy.deepcopy(whole)
    keep = torch.tensor([True, False, True, True, False, False, True, False])
    losses = whole(student, teacher, target, keep)
    kept = (with_index(projected(o.logits[keep]), s) for o, s in ((student, student.index[keep]), (teacher, None)))
    torch.testing.assert_close(losses[keep], alone(*kept, target[keep]))
    assert not losses[~keep].any()
    torch.testing.assert_close(state(whole), state(alone))


def test_where_all_are_dropped_nothing_is_set():
    distiller, student, teacher, target = remembering()
    before = state(distiller)
    losses = distiller(student, teacher, target, torch.zeros(8, dtype=torch.bool))
    gradients = torch.autograd.grad(losses.sum(), trained(distiller))
    assert not losses.any()
    assert not any(gradient.any() for gradient in gradients)
    assert all(torch.equal(a, b) for a, b in zip(before, state(distiller), strict=True))
    distiller(student, teacher, target)
    assert (distiller.normalizers > 0).all()


def test_in_eval_mode_nothing_is_remembered():
    distiller, student, teacher, target = remembering()
    before = copy.deepcopy(distiller.state_dict())
    twice = [distiller.eval()(student, teacher, target) for _ in range(2)]
    assert torch.equal(*twice)
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())


def test_negatives_are_of_other_classes_and_of_all_of_their_samples():
    labels, target = torch.arange(IMAGES) % 3, torch.tensor([0, 1, 1])
    drawn = draw_negatives(labels, target, torch.tensor([8, 9, 10]), 3000)
    for row, y in zip(drawn, target, strict=True):
        counts = row.bincount(minlength=IMAGES)
        assert not counts[labels == y].any()
        assert counts[labels != y].min() > 300  # of 3000 / 8 = 375, whose deviation is 18
    assert not torch.equal(drawn[1], drawn[2])
    again = draw_negatives(labels, target[2:], torch.tensor([10]), 3000)
    assert torch.equal(again[0], drawn[2])


def test_without_another_class_its_own_is_drawn():
    drawn = draw_negatives(torch.zeros(5, dtype=torch.long), torch.tensor([0]), torch.tensor([1]), 4)
    assert ((drawn >= 0) & (drawn < 5)).all()


@pytest.mark.parametrize("keep", [None, torch.tensor([True, False] * 4)])
def test_training_compiles_without_a_break(keep):
    distiller, student, teacher, target = remembering()
    eager = copy.deepcopy(distiller)
    count = CompilationCount()
    step = torch.compile(lambda s, t, y: distiller(s, t, y, keep), backend=count, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(step(student, teacher, target), eager(student, teacher, target, keep))
    assert count.graphs == 1
    torch.testing.assert_close(state(distiller), state(eager))


class Numbered(Dataset):
    """Images with their numbers; ``first`` is that of the first."""

    def __init__(self, first=0):
        self.image = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        self.first = first

    def __len__(self):
        return 8

    def __getitem__(self, n):
        return self.image[n], n % CLASSES, n + self.first


def module():
    torch.manual_seed(3)
    fit = DistillationModule(network(width=3), network(width=5), CRD(dim=4, negatives=6), bias=None)
    fit.rehearse(torch.randn(2, 1, 6, 6), IMAGES)
    return fit


def fit_for(epochs, trainer, path, first=0, **kwargs):
    run, fit = trainer(max_epochs=epochs), module()
    loader = DataLoader(Numbered(first), 4)
    run.fit(fit, loader, loader, **kwargs)
    run.save_checkpoint(path)
    return fit


def test_a_run_goes_on_exactly(trainer, tmp_path):
    path = tmp_path / "half.ckpt"
    whole = fit_for(2, trainer, tmp_path / "whole.ckpt")
    fit_for(1, trainer, path)
    resumed = fit_for(2, trainer, tmp_path / "rest.ckpt", ckpt_path=path)
    assert unchanged(snapshot(whole), resumed)
    assert resumed.distiller.normalizers.gt(0).all()
    loaded = DistillationModule.load_from_checkpoint(
        path, student=network(width=3), teacher=network(width=5), distiller=CRD(dim=4, negatives=6), bias=None
    )
    assert {"distiller.student_memory", "distiller.labels", "distiller.step"} <= set(loaded.state_dict())
    assert loaded.distiller.student_memory.shape == (IMAGES, 4)
    optimised = {id(p) for group in loaded.configure_optimizers().param_groups for p in group["params"]}
    assert not {id(loaded.distiller.student_memory), id(loaded.distiller.labels)} & optimised


def test_refusals(trainer, tmp_path):
    distiller, student, teacher, target = remembering()
    with pytest.raises(UserError, match=r"how many there are: give the data module a num_samples"):
        CRD().build(student, teacher)
    with pytest.raises(UserError, match=r"pass with_index\(student, index\)"):
        distiller(with_index(student, None), teacher, target)
    with pytest.raises(UserError, match=r"numbered 9 to 12 in this batch, outside \[0, 11\]: num_samples"):
        fit_for(1, trainer, tmp_path / "none.ckpt", first=5)
    with pytest.raises(UserError, match=r"let the data set return \(image, target, index\)"):
        trainer().fit(module(), TinyData())
    for wrong in ({"negatives": 0}, {"temperature": 0.0}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match="negatives must be at least 1, temperature positive and momentum in"):
            CRD(**wrong)
