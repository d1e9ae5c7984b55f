"""What a user's loader or data module may give, and what is said of the rest."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from data_files import write_cifar
from lightning.pytorch.callbacks import LambdaCallback
from tiny import network
from torch.utils.data import DataLoader, TensorDataset

from lightning_biaskd import ClassificationModule, DistillationModule, UserError
from lightning_biaskd.data import CIFAR10DataModule, CIFAR100DataModule, DigitsDataModule

IMAGE, TARGET = torch.randn(16, 1, 6, 6), torch.arange(16) % 6


def batches(image=IMAGE, target=TARGET):
    return DataLoader(TensorDataset(image, target), 8)


def distillation():
    return DistillationModule(network(), network())


@pytest.mark.parametrize("change", [torch.Tensor.int, torch.Tensor.byte, torch.Tensor.short, lambda y: y[:, None]])
def test_integer_labels_of_any_kind_are_the_same(trainer, change):
    values = []
    for target in (TARGET, change(TARGET)):
        torch.manual_seed(0)
        module, run = distillation(), trainer()
        run.fit(module, batches(target=target), batches(target=target))
        values.append({name: value.item() for name, value in run.callback_metrics.items()})
    assert values[0] == values[1]


NAMED = DataLoader([{"pixel_values": x, "labels": y} for x, y in zip(IMAGE, TARGET, strict=True)], 8)
UNNAMED = DataLoader([{"pixel_values": x} for x in IMAGE], 8)
TWICE = DataLoader([{"pixel_values": x, "mask": x, "labels": y} for x, y in zip(IMAGE, TARGET, strict=True)], 8)


@pytest.mark.parametrize(
    ("train", "told"),
    [
        (UNNAMED, "a batch is a dict with pixel_values: return .* from its loader"),
        (TWICE, "Sequential does not take pixel_values, mask as its arguments"),
        (DataLoader(IMAGE, 8), r"a batch is one tensor of shape \(8, 1, 6, 6\)"),
        ([batches()], "a batch is a list of list: return .* from its loader"),
        (batches(target=TARGET.float()), "labels of this batch are float32 of shape .*: give integers"),
        (batches(target=F.one_hot(TARGET)), "one-hot labels argmax"),
        (batches(torch.randn(16, 6, 6, 3)), "with the channels last: give .* by permute"),
        (batches(torch.zeros(16, 1, 6, 6, dtype=torch.uint8)), "images are uint8: convert them to normalised floats"),
    ],
)
def test_other_batches_are_one_line(trainer, train, told):
    for module in (distillation(), ClassificationModule(network())):
        with pytest.raises(UserError, match=told) as error:
            trainer(num_sanity_val_steps=0).fit(module, train, batches())
        assert "\n" not in str(error.value)


def test_validation_takes_no_shares_and_one_loader(trainer):
    with pytest.raises(UserError, match="labels of this batch are float32"):
        trainer().validate(distillation(), batches(target=F.one_hot(TARGET).float()), verbose=False)
    for stage in ("validate", "test"):
        with pytest.raises(UserError, match="there are 2 loaders .*ConcatDataset"):
            getattr(trainer(), stage)(distillation(), [batches(), batches()], verbose=False)


def test_pixels_that_are_not_normalised_are_warned_of(trainer):
    with pytest.warns(UserWarning, match="pixels seem to lie in 0…255"):
        trainer().fit(ClassificationModule(network()), batches(IMAGE.abs() * 100), batches())


def test_images_alone_are_predicted(trainer):
    module = ClassificationModule(network())
    whole = torch.cat(trainer().predict(module, batches()))
    assert torch.equal(torch.cat(trainer().predict(module, DataLoader(IMAGE, 8))), whole)
    several = trainer().predict(module, [DataLoader(IMAGE, 8), batches()])
    assert all(torch.equal(torch.cat(part), whole) for part in several)
    assert torch.equal(torch.cat(trainer().predict(module, NAMED)), whole)
    with pytest.raises(UserError, match="a batch is a dict with labels: let it hold the inputs of the network by name"):
        trainer().predict(module, DataLoader([{"labels": y} for y in TARGET], 8))


def test_a_loader_without_its_data_module_is_refused(trainer):
    data = DigitsDataModule()
    data.setup()
    for run in (
        lambda: trainer().test(ClassificationModule(network(10)), data.test_dataloader()),
        lambda: trainer().predict(ClassificationModule(network(10)), data.test_dataloader()),
    ):
        with pytest.raises(UserError, match="the data module normalises them: pass the module itself"):
            run()


def own(change):
    return type("Own", (DigitsDataModule,), {"read": lambda self, split: change(*DigitsDataModule.read(self, split))})()


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x, y.int()),
        lambda x, y: (x, y.byte()),
        lambda x, y: (x, y[:, None]),
        lambda x, y: (x.numpy(), y.numpy()),
        lambda x, y: (x[:, 0], y),
    ],
)
def test_a_data_module_may_read_labels_and_images_of_several_kinds(change):
    found, expected = own(change), DigitsDataModule()
    for data in (found, expected):
        data.setup()
    for one, other in zip(next(iter(found.train_dataloader())), next(iter(expected.train_dataloader())), strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x, y: (x, y.float()), "the train labels are float32 of shape"),
        (lambda x, y: (x, F.one_hot(y)), "of one-hot labels argmax"),
        (lambda x, y: (x.permute(0, 2, 3, 1), y), r"images of shape \(1257, 8, 8, 1\) .* must be \(N, 1, H, W\)"),
        (lambda x, y: (x.float() / 255, y), "type torch.float32: they must be"),
        (lambda x, y: (x.expand(-1, 3, -1, -1), y), "as many channels as mean has numbers"),
        (lambda x, y: (x[1:], y), "hold 1256 images and 1257 labels"),
        (lambda x, y: (x[:0], y[:0]), "hold 0 images and 0 labels"),
        (lambda x, y: (x, y + 1), r"labels in .* lie in \[1, 10\]"),
    ],
)
def test_what_else_a_data_module_reads_is_one_line(change, told):
    with pytest.raises(UserError, match=told):
        own(change).setup()


def test_a_last_batch_of_one_can_be_dropped(trainer):
    seen = []
    count = LambdaCallback(on_train_batch_end=lambda *args: seen.append(len(args[3].target)))
    data = DigitsDataModule(batch_size=100, train_size=201, drop_last=True)
    trainer(callbacks=[count], limit_val_batches=0).fit(ClassificationModule(network(10)), data)
    assert seen == [100, 100]
    with pytest.raises(UserError, match="augment='torchvision': choose true or false"):
        DigitsDataModule(augment="torchvision")


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("module", [CIFAR10DataModule, CIFAR100DataModule])
def test_cifar_files_of_other_checksums_are_read_on_request_and_run_nothing(tmp_path, monkeypatch, module, capfd):
    write_cifar(tmp_path, monkeypatch, module)
    base, name = tmp_path / module.files.base_folder, module.files.test_list[0][0]
    entry = pickle.loads((base / name).read_bytes())
    (base / name).write_bytes(pickle.dumps(entry, protocol=2))
    with pytest.raises(UserError, match="is not the published file, .*set data.verify to false"):
        module(str(tmp_path)).setup()
    data = module(str(tmp_path), verify=False, val_split=0)
    data.setup()
    image = next(iter(data.test_dataloader())).image
    assert torch.equal(image.flatten(1), torch.from_numpy(entry["data"]))
    for content in ({**entry, "data": Evil()}, {**entry, "filenames": Evil()}):
        (base / name).write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="it names builtins.print, and only arrays"):
            module(str(tmp_path), verify=False).setup()
    assert "code ran" not in capfd.readouterr().out
    for content, told in (
        (b"damaged", "can't be read"),
        (pickle.dumps({"data": 1}), "is no file of CIFAR"),
        (pickle.dumps({**entry, "data": 1}), "are damaged"),
    ):
        (base / name).write_bytes(content)
        with pytest.raises(UserError, match=told):
            module(str(tmp_path), verify=False).setup()
