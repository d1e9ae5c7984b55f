"""A cache of the teacher for images that are decoded when they are fetched."""

import shutil

import pytest
import torch
from data_files import write_folders
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import launch
from torchvision.transforms import v2

from lightning_biaskd import DKD, KD, DistillationModule, FrozenTeacher, TeacherCache, UserError, WeightedSum
from lightning_biaskd.__main__ import main
from lightning_biaskd.bias import partition
from lightning_biaskd.data import ImageNetDataModule
from lightning_biaskd.data.decoding import decoded
from lightning_biaskd.distillers import DIST, NKD, WSLD, LogitStandardization
from lightning_biaskd.models import CIFARResNet
from lightning_biaskd.randomness.bits import random_bits
from lightning_biaskd.training.fill_cache import fill_cache

SIZES = {"classes": ("cat", "dog", "eel"), "sizes": (6, 3)}  # 18 images to train on


@pytest.fixture
def root(tmp_path):
    write_folders(tmp_path / "images", **SIZES)
    return tmp_path / "images"


def data(root, **kwargs):
    options = {
        "val_split": 4,
        "batch_size": 5,
        "image_size": 32,
        "resize": 36,
        "num_workers": 0,
        "views": 3,
        "decoder": "pillow",
    }
    return ImageNetDataModule(str(root), **{**options, **kwargs})


def net(seed=0):
    torch.manual_seed(seed)
    model = CIFARResNet(8, 3, 3, (4,) * 4)
    torch.nn.init.normal_(model.fc.weight)
    return model


def module(cache=None, **kwargs):
    slow = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.001)}
    return DistillationModule(net(1), net(2), KD(1.0), teacher_cache=cache, **slow, **kwargs)


class Seen(Callback):
    """Keeps what a fit saw and what the teacher said."""

    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((batch, outputs["teacher_logits"].float()))

    def joined(self, name):
        return torch.cat([getattr(batch, name) for batch, _ in self.batches])


def fitted(trainer, source, cache=None, **options):
    seen = Seen()
    trainer(callbacks=[seen], **options).fit(module(cache), source)
    return seen


def test_training_sees_the_numbered_views_and_each_is_a_crop_of_its_seed(root, trainer):
    source = data(root)
    seen = fitted(trainer, source, max_epochs=3)
    index, view = seen.joined("index"), seen.joined("view")
    assert view.unique().tolist() == [0, 1, 2]
    torch.testing.assert_close(source.numbered_images(index, view), seen.joined("image"), rtol=0, atol=0)
    other = fitted(trainer, data(root, num_workers=2), max_epochs=3)
    assert torch.equal(other.joined("image"), seen.joined("image"))
    for i in (0, 7, 20):  # by torchvision alone
        torch.manual_seed(int(random_bits(0, int(view[i]), index[i : i + 1])))
        image = decoded(source.files.images.found.paths[index[i]])
        crop = v2.functional.pil_to_tensor(v2.RandomHorizontalFlip()(v2.RandomResizedCrop(32)(image)))
        assert torch.equal(source.normalized(crop[None])[0], seen.joined("image")[i])


def test_views_follow_from_seed_image_and_number_alone(root):
    """Not from the split, the epoch, or the seed of the run."""
    one, other = data(root), data(root, val_split=0)
    for source in (one, other):
        source.setup()
    index, view = torch.tensor([0, 0, 17, 17]), torch.tensor([0, 2, 1, 3])
    image = one.numbered_images(index, view)
    assert torch.equal(image, other.numbered_images(index, view))
    batches = list(one.numbered_batches(index, view, 3, torch.device("cpu")))
    assert torch.equal(torch.cat([batch[2] for batch in batches]), image)
    plain = one.test_view(decoded(one.files.images.found.paths[17]))
    assert torch.equal(image[3], one.normalized(plain[None])[0])
    assert one.fingerprint() == other.fingerprint()
    assert data(root, views=None).view_count is None
    assert data(root, augment=False).view_count == 1


@pytest.mark.parametrize("topk", [None, 2])
def test_a_filled_cache_is_the_teacher_on_the_same_views(topk, root, trainer, tmp_path):
    cache = TeacherCache(str(tmp_path / "cache"), topk=topk)
    fill_cache(module(cache), data(root, num_workers=1), trainer())
    filled = torch.from_file(str(tmp_path / "cache/filled.bin"), size=18 * 4, dtype=torch.int32).view(18, 4)
    source = data(root)
    cached = module(cache)
    asked = []
    cached.teacher.register_forward_hook(lambda *_: asked.append(1))
    seen = Seen()
    trainer(callbacks=[seen], max_epochs=2).fit(cached, source)
    assert len(asked) == 1  # to compare some of what is stored
    held_out = [i for i in range(18) if i not in source.train_set.index]
    assert (filled[source.train_set.index, :3] != 0).all()
    assert (filled[held_out, 3] != 0).all()
    assert int((filled != 0).sum()) == 14 * 3 + 4
    for batch, logits in seen.batches:
        expected = cached.teacher.model(batch.image)
        if topk is None:
            distance = expected.amax(1, keepdim=True) - expected
            assert ((logits - expected).abs() <= 2**-11 * distance + 1e-5).all()
        else:  # of three classes, so one is left, with its whole probability
            torch.testing.assert_close(logits.softmax(1), expected.softmax(1), rtol=3e-3, atol=1e-6)
        assert torch.equal(partition(logits, batch.target), partition(expected, batch.target))


def test_another_teacher_data_or_view_set_is_refused(root, trainer, tmp_path):
    cache = str(tmp_path / "cache")
    fitted(trainer, data(root), cache)
    fitted(trainer, data(root, val_split=8), cache)
    shutil.copytree(root, tmp_path / "elsewhere")
    fitted(trainer, data(tmp_path / "elsewhere"), cache)
    with pytest.raises(UserError, match=r"was made of another teacher \(\w+, not \w+\): name another folder"):
        trainer().fit(DistillationModule(net(), net(3), KD(1.0), teacher_cache=cache), data(root))
    for other in ({"views": 4}, {"seed": 1}, {"image_size": 33}, {"augment": False}, {"mean": (0.5,) * 3}):
        with pytest.raises(UserError, match="was made of another (data|rows)"):
            fitted(trainer, data(root, **other), cache)
    (root / "train/eel/0.jpg").write_bytes((root / "train/eel/0.jpg").read_bytes() + b"\0")
    with pytest.raises(UserError, match="was made of another data"):
        fitted(trainer, data(root), cache)
    with pytest.raises(UserError, match="views=16 or so for ImageNetDataModule"):
        fitted(trainer, data(root, views=None), cache)
    with pytest.raises(UserError, match="views=0 leaves nothing"):
        data(root, views=0)


def test_a_run_that_resumes_sees_the_same_views(root, trainer, tmp_path):
    middle = ModelCheckpoint(tmp_path / "saved", "middle", every_n_train_steps=5)
    whole = Seen()
    trainer(callbacks=[whole, middle], enable_checkpointing=True, max_epochs=3).fit(module(), data(root))
    rest, again = Seen(), ModelCheckpoint(tmp_path / "again", "middle", every_n_train_steps=5)
    go_on = {"ckpt_path": tmp_path / "saved/middle.ckpt", "weights_only": True}
    trainer(callbacks=[rest, again], enable_checkpointing=True, max_epochs=3).fit(module(), data(root), **go_on)
    for name in ("index", "view", "image"):
        both = whole.joined(name)[-len(rest.joined(name)) :]
        assert torch.equal(rest.joined(name), both)
    assert len(rest.batches) == 9 - 5


def test_filling_goes_on_where_it_was(root, tmp_path):
    source, teacher = data(root), FrozenTeacher(net(2))
    source.setup()
    store = TeacherCache(str(tmp_path)).open(teacher, source, 3)
    assert next(store.fill(teacher, source, torch.device("cpu"), 8)) == (8, 14 * 3 + 4)
    again = TeacherCache(str(tmp_path)).open(teacher, source, 3)
    assert list(again.fill(teacher, source, torch.device("cpu"), 20)) == [(20, 38), (38, 38)]
    assert not again.missing(source).numel()


def test_two_processes_fill_it_by_a_recipe_and_train_from_it(root, tmp_path):
    network = ["lightning_biaskd.models.resnet8", "num_classes", "3"]
    recipe = ["-c", "configs/recipe/imagenet_resnet34_resnet18_kd_cached.yaml"]
    recipe += ["-c", "configs/trainer/imagenet_8_gpus.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    recipe += ["--data.root", str(root), "--data.image_size", "32", "--data.num_workers", "0", "--data.batch_size", "4"]
    recipe += ["--data.views", "3", "--model.teacher_cache.path", "cache", "--model.teacher_weights", "teacher.pt"]
    for role in ("student", "teacher"):
        recipe += [f"--model.{role}", network[0], f"--model.{role}.{network[1]}", network[2]]
    recipe += ["--trainer.max_steps", "3", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
    torch.save(CIFARResNet(8, 3).state_dict(), tmp_path / "teacher.pt")
    launch(main, ["cache", *recipe], ranks=2, folder=tmp_path)
    filled = torch.from_file(str(tmp_path / "cache/filled.bin"), size=18 * 4, dtype=torch.int32)
    assert int((filled != 0).sum()) == 18 * 3
    before = (tmp_path / "cache/logits.bin").read_bytes()
    launch(main, ["fit", *recipe, "--test_after_fit", "false"], ranks=2, folder=tmp_path)
    assert (tmp_path / "cache/logits.bin").read_bytes() == before
    (last,) = tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 3


@pytest.mark.parametrize(
    ("method", "temperature", "match"),
    [
        (LogitStandardization(KD()), 1.0, "LogitStandardization reads more of the teacher's logits than .* topk=10"),
        (WeightedSum([(KD(1.0), 1.0), (DIST(), 1.0)]), 1.0, "DIST reads more .*: give it topk: null"),
        (DKD(temperature=4.0), 1.0, "DKD compares at temperature 4, .* at 1: give it temperature: 4, or topk: null"),
        (WSLD(2.0), 2.0, "WSLD reads more"),
        (DKD(temperature=4.0), 4.0, None),
        (NKD(temperature=1.0), 1.0, None),
    ],
)
def test_methods_that_read_more_than_is_stored_are_one_line(method, temperature, match):
    cache = TeacherCache("nowhere", topk=10, temperature=temperature)
    if match is None:
        cache.check(method)
        return
    with pytest.raises(UserError, match=match):
        DistillationModule(net(), net(), method, teacher_cache=cache)
    TeacherCache("nowhere").check(method)
