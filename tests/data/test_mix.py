"""Mixed images and labels."""

import pytest
import torch
import torch.nn.functional as F
from data_files import write_folders
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import network
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lightning_biaskd import ClassificationModule, DistillationModule, UserError
from lightning_biaskd.data import DigitsDataModule, ImageNetDataModule
from lightning_biaskd.data.batch import collate


class InOrder(DigitsDataModule):
    """Digits whose batches are always the same, as they are and mixed."""

    def __init__(self, mix, **kwargs):
        super().__init__(batch_size=32, val_split=0, augment=False, mix=mix, **kwargs)

    def train_dataloader(self):
        return DataLoader(self.train_set, 32, collate_fn=collate, shuffle=False)


class Seen(Callback):
    def __init__(self):
        self.batches, self.evaluated = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_test_batch_start(self, trainer, pl_module, batch, *_):
        self.evaluated.append(batch)


def classifier(**kwargs):
    return ClassificationModule(network(10), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **kwargs)


def fit(trainer, mix, module=None, seed=0, **kwargs):
    seen = Seen()
    trainer(callbacks=[seen], limit_train_batches=3, **kwargs).fit(module or classifier(), InOrder(mix, seed=seed))
    return seen.batches


def mixed_labels(batch, plain, shares):
    one_hot = F.one_hot(plain.target, 10)
    torch.testing.assert_close(batch.target, shares * one_hot + (1 - shares) * one_hot.roll(1, 0))


def test_mixup_is_a_sum_of_images_and_of_labels(trainer):
    plain, mixed = fit(trainer, None), fit(trainer, v2.MixUp(alpha=1.0))
    shares = []
    for before, batch in zip(plain, mixed, strict=True):
        weights = torch.stack([before.image.flatten(), before.image.roll(1, 0).flatten()], 1)
        share, rest = torch.linalg.lstsq(weights, batch.image.flatten()[:, None]).solution.flatten()
        assert share + rest == pytest.approx(1, abs=1e-5)
        mixed_labels(batch, before, share)
        shares.append(share.item())
    assert len({round(share, 4) for share in shares}) == 3


def test_cutmix_is_a_patch_whose_area_is_the_share_of_its_label(trainer):
    plain, mixed = fit(trainer, None), fit(trainer, v2.CutMix(alpha=1.0))
    for before, batch in zip(plain, mixed, strict=True):
        same, other = before.image, before.image.roll(1, 0)
        assert ((batch.image == same) | (batch.image == other)).all()
        kept = torch.stack([(a == b)[(b != c)].all() for a, b, c in zip(batch.image, same, other, strict=True)])
        assert not kept.all()
        share = batch.target.max(1).values.max()
        assert (share * 64).item() == pytest.approx(round(share.item() * 64), abs=1e-3)  # of 8 x 8 pixels
        torch.testing.assert_close(batch.target.sum(1), torch.ones(32))


def test_what_is_drawn_follows_from_seed_epoch_and_batch_alone(trainer):
    mix = v2.RandomChoice([v2.MixUp(alpha=1.0), v2.CutMix(alpha=1.0)])
    first = fit(trainer, mix, max_epochs=2)
    torch.manual_seed(5)
    again, other = fit(trainer, mix, max_epochs=2), fit(trainer, mix, seed=1)
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.target, b.target) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0].image, other[0].image)
    assert not torch.equal(first[0].image, first[3].image)  # of the next epoch


def test_mixing_leaves_the_random_numbers_of_others_alone(trainer):
    data = InOrder(v2.MixUp(alpha=1.0))
    data.setup()
    run = trainer()
    data.trainer = run
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    data.mixed(batch._replace(image=batch.image.float()), run, data.mix)
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.filterwarnings("ignore:.*callbacks used to create")
def test_a_resumed_run_mixes_as_one_that_was_never_stopped(trainer, tmp_path):
    mix = v2.CutMix(alpha=1.0)
    whole = fit(trainer, mix, max_epochs=2)
    saving, seen = ModelCheckpoint(dirpath=tmp_path, filename="run"), Seen()
    trainer(callbacks=[saving], enable_checkpointing=True, limit_train_batches=3).fit(classifier(), InOrder(mix))
    run = trainer(callbacks=[seen], limit_train_batches=3, max_epochs=2)
    run.fit(classifier(), InOrder(mix), ckpt_path=tmp_path / "run.ckpt")
    for before, after in zip(whole[3:], seen.batches, strict=True):
        assert torch.equal(before.image, after.image)
        assert torch.equal(before.target, after.target)


def test_nothing_is_mixed_in_evaluation(trainer):
    seen = Seen()
    trainer(callbacks=[seen]).test(classifier(), InOrder(v2.MixUp(alpha=1.0)), verbose=False)
    assert all(batch.target.ndim == 1 for batch in seen.evaluated)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mix_of_the_losses(smoothing):
    module = classifier(label_smoothing=smoothing).eval()
    image, first, second = torch.randn(8, 1, 8, 8), torch.arange(8), torch.arange(8) + 2
    target = 0.7 * F.one_hot(first, 10) + 0.3 * F.one_hot(second, 10)
    step = module.losses((image, target), 0)
    parts = [F.cross_entropy(module(image), labels, label_smoothing=smoothing) for labels in (first, second)]
    torch.testing.assert_close(step.loss, 0.7 * parts[0] + 0.3 * parts[1])
    assert step.logged["train/acc1"] == (module(image).argmax(1) == first).float().mean()


def test_mixed_labels_of_other_classes_are_one_line():
    with pytest.raises(UserError, match="mixed labels are of 7 classes, the logits of 10"):
        classifier().losses((torch.randn(8, 1, 8, 8), torch.full((8, 7), 1 / 7)), 0)


def test_a_transform_that_does_not_fit_is_one_line(trainer):
    with pytest.raises(UserError, match="MixUp can't mix this batch: "):
        fit(trainer, v2.MixUp(alpha=1.0, num_classes=7))


def test_distillation_refuses_mixed_labels(trainer):
    with pytest.raises(UserError, match="no single label .*data.mix null"):
        fit(trainer, v2.MixUp(alpha=1.0), DistillationModule(network(10), network(10)))


def test_decoded_images_are_mixed_too(trainer, tmp_path):
    write_folders(tmp_path)
    data = ImageNetDataModule(
        str(tmp_path), batch_size=6, val_split=0, num_workers=0, image_size=16, resize=20, mix=v2.MixUp(alpha=1.0)
    )
    seen = Seen()
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    trainer(callbacks=[seen]).fit(ClassificationModule(model), data)
    assert seen.batches[0].target.shape == (6, 3)
