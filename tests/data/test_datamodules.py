import gzip

import numpy as np
import pytest
import torch
from data_files import write_cifar, write_folders, write_idx
from lightning.pytorch import LightningModule

from lightning_biaskd import UserError
from lightning_biaskd.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageNetDataModule,
)
from lightning_biaskd.data.loader import EpochSampler
from lightning_biaskd.randomness.bits import further_bits


class Views(LightningModule):
    """Collects the batches as a network would get them."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = {"train": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return self.layer(torch.zeros(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def views(trainer, data, stage="train", **kwargs):
    module = Views()
    run = trainer(**kwargs)
    run.fit(module, data) if stage == "train" else run.test(module, data, verbose=False)
    batches = module.seen[stage]
    order = torch.cat([batch.index for batch in batches]).argsort()
    return torch.cat([batch.image for batch in batches])[order], torch.cat([batch.target for batch in batches])[order]


def test_digits_are_split_seeded_and_disjoint():
    data = DigitsDataModule(val_split=0.2)
    data.setup()
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (1006, 251, 540)
    train, val = set(data.train_set.index.tolist()), set(data.val_set.index.tolist())
    assert not train & val
    assert train | val == set(range(1257))
    again, other = DigitsDataModule(val_split=0.2), DigitsDataModule(val_split=0.2, seed=1)
    again.setup()
    other.setup()
    assert torch.equal(again.val_set.index, data.val_set.index)
    assert not torch.equal(other.val_set.index, data.val_set.index)
    pixels = {image.numpy().tobytes() for image in data.test_set.image}
    shared = [image for image in data.train_set.image if image.numpy().tobytes() in pixels]
    assert not shared


def test_val_split_is_a_share_or_a_number_or_nothing():
    for val_split, size in ((0.5, 628), (100, 100), (0, None)):
        data = DigitsDataModule(val_split=val_split)
        data.setup()
        assert (len(data.val_set) if data.val_set else None) == size
    assert not data.val_dataloader()
    for val_split in (1257, 5000, -1):
        with pytest.raises(UserError, match="leaves none to train on"):
            DigitsDataModule(val_split=val_split).setup()


def labels(**kwargs):
    data = DigitsDataModule(val_split=0.2, **kwargs)
    data.setup()
    return data.train_set, data.val_set, data.test_set


def test_a_training_subset_is_fixed_by_the_seed_and_leaves_the_rest_alone():
    train, val, test = labels(train_size=100)
    full, full_val, full_test = labels()
    assert len(train) == len(set(train.index.tolist())) == 100
    assert set(train.index.tolist()) < set(full.index.tolist())
    assert torch.equal(val.index, full_val.index)
    assert torch.equal(test.index, full_test.index)
    assert torch.equal(train.index, labels(train_size=100)[0].index)
    assert not torch.equal(train.index, labels(train_size=100, seed=1)[0].index)
    assert set(train.index.tolist()) < set(labels(train_size=101)[0].index.tolist())
    for size in (0, 1007):
        with pytest.raises(UserError, match=f"train_size={size}, but there are 1006 training images"):
            labels(train_size=size)


@pytest.mark.parametrize("train_size", [None, 500])
def test_label_noise_is_an_exact_share_of_the_training_labels_alone(train_size):
    noisy, noisy_val, noisy_test = labels(label_noise=0.2, train_size=train_size)
    clean, clean_val, clean_test = labels(train_size=train_size)
    wrong = noisy.target[noisy.index] != clean.target[clean.index]
    assert wrong.sum() == round(0.2 * len(noisy))
    assert torch.equal(noisy_val.target[noisy_val.index], clean_val.target[clean_val.index])
    assert torch.equal(noisy_test.target, clean_test.target)
    assert torch.equal(noisy.target, labels(label_noise=0.2, train_size=train_size)[0].target)


def test_noisy_labels_are_spread_over_all_other_classes():
    noisy, *_ = labels(label_noise=1.0)
    clean, *_ = labels()
    steps = torch.bincount((noisy.target - clean.target)[noisy.index] % 10, minlength=10)
    assert steps[0] == 0
    assert steps[1:].min() > 80  # 1,006 over nine classes: 112 each, standard deviation 10
    with pytest.raises(UserError, match=r"label_noise=1.5 is no share"):
        labels(label_noise=1.5)


def test_noisy_labels_come_in_no_order(trainer):
    """With the same seed for both, the first batches of the first epoch would hold all of them."""
    module, noisy, clean = Views(), DigitsDataModule(label_noise=0.4), DigitsDataModule()
    trainer().fit(module, noisy)
    clean.setup()
    order = torch.cat([batch.index for batch in module.seen["train"]])
    wrong = (noisy.train_set.target != clean.train_set.target)[order].float()
    first, second = wrong.tensor_split(2)
    assert wrong.mean() == pytest.approx(0.4, abs=0.01)
    assert abs(first.mean() - second.mean()) < 0.1


def test_pixels_are_normalised_with_the_constants_of_the_data(trainer):
    image, target = views(trainer, DigitsDataModule(augment=False, val_split=0))
    assert image.shape == (1257, 1, 8, 8)
    assert image.mean().abs() < 1e-3
    assert (image.std() - 1).abs() < 1e-3
    assert torch.bincount(target).min() > 100


def test_only_training_images_are_augmented_anew_in_every_epoch(trainer):
    def run(epochs=1, **kwargs):
        return views(trainer, DigitsDataModule(val_split=0, **kwargs), max_epochs=epochs)[0]

    plain, first = run(augment=False), run()
    assert not torch.equal(plain, first)
    assert torch.equal(first, run(batch_size=17))  # the same views whatever the batches
    assert not torch.equal(first, run(seed=1))
    two = run(epochs=2).view(1257, 2, 1, 8, 8)
    assert not torch.equal(two[:, 0], two[:, 1])
    tests = [views(trainer, DigitsDataModule(augment=augment), "test")[0] for augment in (True, False)]
    assert torch.equal(*tests)


class Ramp(DigitsDataModule):
    """Images whose views tell how they were made: every pixel another number."""

    flip = True

    def read(self, split):
        image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(400, -1, -1, -1)
        return image, torch.zeros(400, dtype=torch.int64)

    def normalized(self, image):
        return image


def test_all_views_are_equally_likely(trainer):
    image, _ = views(trainer, Ramp(val_split=0), max_epochs=5)
    inner = image[:, 0, 1:7, 1:7].long()  # never padding
    kinds, counts = inner.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18
    assert ((counts - 2000 / 18).square() / (2000 / 18)).sum() < 17 + 5 * 34**0.5  # chi-squared, 17 degrees of freedom
    first = {(row[0], row[1] - row[0]) for row in kinds.tolist()}  # where the view begins, and which way it runs
    expected = {(1 + 8 * row + column, 1) for row in range(3) for column in range(3)}
    assert first == expected | {(1 + 8 * row + column, -1) for row in range(3) for column in (5, 6, 7)}


def test_pixels_become_floats_of_zero_mean_and_unit_variance():
    data = CIFAR10DataModule()
    for layout in (torch.contiguous_format, torch.channels_last):
        image = torch.randint(256, (4, 3, 5, 6), dtype=torch.uint8).contiguous(memory_format=layout)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
        torch.testing.assert_close(data.normalized(image), (image / 255 - mean) / std)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_images_are_in_the_precision_of_the_trainer(precision, dtype, trainer):
    module = Views()
    trainer(precision=precision, limit_train_batches=1).fit(module, DigitsDataModule())
    assert module.seen["train"][0].image.dtype == dtype


def test_a_few_fixed_views_are_drawn_again_and_again(trainer):
    module = Views()
    data = DigitsDataModule(val_split=0, views=3, batch_size=100)
    trainer(max_epochs=8).fit(module, data)
    seen = [set() for _ in range(1257)]
    for batch in module.seen["train"]:
        for image, sample, view in zip(batch.image, batch.index.tolist(), batch.view.tolist(), strict=True):
            seen[sample].add((view, image.numpy().tobytes()))
    assert max(map(len, seen)) == 3
    assert {view for views in seen for view, _ in views} == {0, 1, 2}
    batch = data.train_set.__getitems__([5, 6])
    again = data.normalized(data.numbered_views(batch, torch.tensor([0, 2])).image)
    assert {(0, again[0].numpy().tobytes())} <= seen[5]
    assert {(2, again[1].numpy().tobytes())} <= seen[6]
    with pytest.raises(UserError, match="views=0 leaves nothing"):
        DigitsDataModule(views=0)


def test_views_are_counted_where_they_can_be(trainer):
    assert DigitsDataModule().view_count == 9
    assert CIFAR10DataModule().view_count == 162
    assert DigitsDataModule(augment=False).view_count == 1
    assert CIFAR10DataModule(cutout=8, views=5).view_count == 5
    uncountable = [{"cutout": 2}, {"color_jitter": 0.2}, {"strong_view": True}]
    for kwargs in uncountable:
        data = DigitsDataModule(**kwargs)
        assert data.view_count is None
        module = Views()
        trainer(limit_train_batches=1).fit(module, data)
        assert module.seen["train"][0].view is None


class Inverted(DigitsDataModule):
    """Crops and mirrors, and inverts half of the views."""

    def augmented(self, image, bits):
        inverted = (further_bits(bits) % 2).view(-1, 1, 1, 1) == 1
        return super().augmented(torch.where(inverted, 255 - image, image), bits)


class Shifted(DigitsDataModule):
    def training_views(self, batch, bits):
        return super().training_views(batch._replace(image=batch.image + 1), bits)


class Noisy(DigitsDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch._replace(image=batch.image + torch.randn_like(batch.image))


class Erased(DigitsDataModule):
    def normalized(self, image):
        return super().normalized(image) * (torch.rand_like(image[:, :, :1, :1]) > 0.5)


class Flipped(DigitsDataModule):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        return batch._replace(image=batch.image.flip(-1)) if torch.rand(()) > 0.5 else batch


def test_views_of_a_subclass_are_counted_where_numbers_give_them_again(trainer):
    assert Inverted().view_count is None
    assert Inverted(views=3).view_count == 3
    for kind in (Shifted, Noisy, Erased, Flipped):
        assert kind().view_count is kind(views=3).view_count is None
    assert Inverted(augment=False).view_count == 1
    module, data = Views(), Inverted(val_split=0, views=3)
    trainer(limit_train_batches=3).fit(module, data)
    for batch in module.seen["train"]:
        assert torch.equal(data.numbered_images(batch.index, batch.view), batch.image)


def test_a_subclass_has_a_fingerprint_of_its_own():
    plain, inverted = DigitsDataModule(views=3), Inverted(views=3)
    for data in (plain, inverted):
        data.setup()
    assert plain.fingerprint() != inverted.fingerprint()


def test_every_view_of_the_epoch_has_its_number(trainer):
    module, data = Views(), DigitsDataModule(val_split=0)
    trainer().fit(module, data)
    for batch in module.seen["train"][:3]:
        again = data.numbered_views(data.train_set.__getitems__(batch.index.tolist()), batch.view)
        assert torch.equal(data.normalized(again.image), batch.image)


class Prepared(DigitsDataModule):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch  # as Lightning's own, which does nothing


def test_a_subclass_with_a_hook_of_its_own_draws_the_same_views(trainer):
    seen = [views(trainer, kind(val_split=0))[0] for kind in (Prepared, DigitsDataModule)]
    assert torch.equal(*seen)


def two_views(trainer, **kwargs):
    """Weak and strong views of one epoch by sample number, and whether both halves of each batch name the same ones."""
    module = Views()
    trainer().fit(module, DigitsDataModule(val_split=0, strong_view=True, **kwargs))
    halves = [[part.chunk(2) for part in batch[:3]] for batch in module.seen["train"]]
    same = all(torch.equal(*target) and torch.equal(*sample) for _, target, sample in halves)
    order = torch.cat([sample[0] for _, _, sample in halves]).argsort()
    return *(torch.cat([image[half] for image, _, _ in halves])[order] for half in (0, 1)), same


def test_a_strong_view_of_each_image_follows_the_weak_one(trainer):
    weak, strong, same = two_views(trainer)
    assert same
    assert torch.equal(weak, views(trainer, DigitsDataModule(val_split=0))[0])
    assert (weak != strong).flatten(1).any(1).all()
    again = two_views(trainer, batch_size=17, num_workers=0)
    assert torch.equal(again[0], weak)
    assert torch.equal(again[1], strong)
    assert not torch.equal(two_views(trainer, seed=1)[1], strong)
    plain, beside, _ = two_views(trainer, augment=False)  # the weak view is then none
    assert torch.equal(plain, views(trainer, DigitsDataModule(val_split=0, augment=False))[0])
    assert torch.equal(beside, strong)


def test_strong_views_are_for_training_alone(trainer):
    tests = [views(trainer, DigitsDataModule(strong_view=strong), "test") for strong in (True, False)]
    for one, other in zip(*tests, strict=True):
        assert torch.equal(one, other)
    data = DigitsDataModule(strong_view=True)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    assert data.on_after_batch_transfer(batch, 0).image.shape == batch.image.shape


def test_views_are_pixels_until_they_are_normalised(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, CIFAR10DataModule)
    for data in (DigitsDataModule(strong_view=True), CIFAR10DataModule(str(tmp_path), val_split=5, strong_view=True)):
        data.setup()
        batch = next(iter(data.train_dataloader()))
        both = data.training_views(batch, batch.index)
        assert both.image.dtype == torch.uint8
        assert both.image.shape == (2 * len(batch.image), *batch.image.shape[1:])


def test_workers_load_the_same(trainer):
    alone, two = (views(trainer, DigitsDataModule(num_workers=n), "test") for n in (0, 2))
    assert torch.equal(alone[0], two[0])


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
def test_fashion_mnist_reads_idx_files(tmp_path, pack, below):
    write_idx(tmp_path / below, pack)
    data = FashionMNISTDataModule(str(tmp_path), val_split=0.25)
    data.setup()
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (30, 10, 20)
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert batch.image.shape == (20, 1, 28, 28)
    assert batch.target.tolist() == [i % 10 for i in range(20)]
    assert (len(data.class_names), data.class_names[6]) == (10, "Shirt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "is damaged"),
        (lambda path: path.write_bytes(gzip.compress(b"nothing" * 9)), "is damaged .*not an idx file"),
        (lambda path: path.unlink(), "no Fashion-MNIST file train-images"),
    ],
)
def test_damaged_fashion_mnist_is_one_line(tmp_path, damage, message):
    write_idx(tmp_path)
    damage(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match=message):
        FashionMNISTDataModule(str(tmp_path)).setup()


def test_labels_of_another_data_set_are_one_line(tmp_path):
    write_idx(tmp_path, classes=12)
    with pytest.raises(UserError, match=r"outside \[0, 9\]: these are no files of FashionMNIST"):
        FashionMNISTDataModule(str(tmp_path)).setup()


@pytest.mark.parametrize("module", [CIFAR10DataModule, CIFAR100DataModule])
def test_cifar_reads_torchvisions_files(tmp_path, monkeypatch, module):
    write_cifar(tmp_path, monkeypatch, module)
    data = module(str(tmp_path), val_split=5)
    data.prepare_data()
    data.setup()
    size = 20 * len(module.files.train_list)
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (size - 5, 5, 20)
    batch = next(iter(data.test_dataloader()))
    reference = module.files(str(tmp_path), train=False)
    image = np.asarray(reference[3][0])
    assert torch.equal(batch.image[3], torch.tensor(image).permute(2, 0, 1))
    assert batch.target[3] == reference[3][1]
    assert data.class_names == reference.classes
    (tmp_path / module.files.base_folder / module.files.test_list[0][0]).write_bytes(b"damaged")
    with pytest.raises(UserError, match="or damaged there"):
        module(str(tmp_path)).setup()


def test_imagenet_reads_class_folders(tmp_path, trainer):
    write_folders(tmp_path)
    data = ImageNetDataModule(str(tmp_path), val_split=4, num_workers=0, image_size=32, resize=36, batch_size=5)
    image, target = views(trainer, data, "test")
    assert image.shape == (9, 3, 32, 32)
    assert target.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.num_classes == 3
    assert data.class_names == ["cat", "dog", "eel"]
    assert (len(data.train_set), len(data.val_set)) == (14, 4)
    assert not set(data.train_set.index.tolist()) & set(data.val_set.indices)
    assert views(trainer, data)[0].shape == (14, 3, 32, 32)


def test_views_of_single_images_follow_from_seed_epoch_and_image(tmp_path):
    """Whatever was drawn before, and whichever process decodes; so a resumed run sees the same."""
    write_folders(tmp_path)

    def epochs(first, last, workers):
        torch.manual_seed(workers + first)
        data = ImageNetDataModule(str(tmp_path), val_split=4, num_workers=workers, image_size=32, batch_size=5)
        data.setup()
        loader = data.train_dataloader()
        found = []
        for epoch in range(first, last):
            iterator = iter(loader)
            loader.sampler.set_epoch(epoch)
            before = torch.get_rng_state()
            found.append(torch.cat([batch.image for batch in iterator]))
            assert torch.equal(torch.get_rng_state(), before)
        return found

    whole, rest, by_workers = epochs(0, 3, 0), epochs(2, 3, 0), epochs(1, 3, 2)
    assert torch.equal(whole[2], rest[0])
    assert torch.equal(whole[1], by_workers[0])
    assert torch.equal(whole[2], by_workers[1])
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("views", [None, 2])
def test_repeated_augmentation_shows_a_third_of_the_images_three_times(views, tmp_path):
    write_folders(tmp_path)
    options = {"val_split": 4, "num_workers": 0, "image_size": 32, "batch_size": 7, "repeats": 3, "views": views}
    data = ImageNetDataModule(str(tmp_path), **options)
    data.setup()
    loader = data.train_dataloader()
    batches = list(loader)
    index, image = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("index", "image"))
    assert len(index) == 14
    assert (index[:12].view(4, 3) == index[:12:3, None]).all()
    assert len(index.unique()) == 5
    shown = len(image.flatten(1).unique(dim=0))
    assert 12 <= shown <= 14 if views is None else 5 < shown <= 10  # of so small an image, two crops may be the same
    loader.sampler.set_epoch(1)
    assert next(iter(loader)).index.tolist() != index[:7].tolist()
    ranks = [EpochSampler(data.train_set, 2, rank, seed=data.drawing_seed) for rank in (0, 1)]
    for sampler in ranks:
        sampler.repeats = 3
    joined = torch.tensor([list(sampler) for sampler in ranks]).T.reshape(-1) % 14
    assert torch.equal(data.train_set.index[joined], index)  # two processes show what one does
    with pytest.raises(UserError, match="repeats=0 shows no image"):
        ImageNetDataModule(repeats=0)


def test_imagenet_folders_must_agree(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "val" / "eel").rename(tmp_path / "val" / "fox")
    with pytest.raises(UserError, match="different class folders"):
        ImageNetDataModule(str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("module", "folder", "source"),
    [
        (FashionMNISTDataModule, "", "github.com/zalandoresearch/fashion-mnist"),
        (CIFAR10DataModule, "cifar-10-batches-py", "www.cs.toronto.edu"),
        (CIFAR100DataModule, "cifar-100-python", "www.cs.toronto.edu"),
        (ImageNetDataModule, "train", "image-net.org"),
    ],
)
def test_missing_data_are_one_line_with_folder_flag_and_source(tmp_path, module, folder, source):
    with pytest.raises(UserError) as error:
        module(str(tmp_path / "empty")).setup()
    message = str(error.value)
    assert str(tmp_path / "empty" / folder) in message
    assert "set data.root" in message
    assert source in message
    assert "\n" not in message


@pytest.mark.parametrize("module", [FashionMNISTDataModule, CIFAR10DataModule, CIFAR100DataModule])
def test_data_are_fetched_only_if_asked_for(monkeypatch, module):
    fetched = []

    def fetch(root, **kwargs):
        fetched.append((root, kwargs))

    if module is FashionMNISTDataModule:
        monkeypatch.setattr("lightning_biaskd.data.fashion_mnist.FashionMNIST", fetch)
    else:
        monkeypatch.setattr(module, "files", staticmethod(fetch))
    module("here").prepare_data()
    assert not fetched
    module("here", download=True).prepare_data()
    assert fetched == [("here", {"download": True})]
