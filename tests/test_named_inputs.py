"""Batches of named tensors, as those of transformers, for images and texts."""

import copy
import json

import pytest
import torch
from lightning.pytorch import LightningDataModule
from tiny import by_gamma, snapshot, unchanged
from torch import nn
from torch.utils.data import DataLoader

from lightning_biaskd import KD, ClassificationModule, DistillationModule, UserError, export_student, load_student
from lightning_biaskd.audit import audit
from lightning_biaskd.callbacks import BiasMonitor
from lightning_biaskd.command_line.commands import Commands
from lightning_biaskd.training.passes import QUIET
from lightning_biaskd.training.step import Distillation

transformers = pytest.importorskip("transformers")
WORDS = [
    "[PAD]",
    "the",
    "a",
    "film",
    "book",
    "was",
    "is",
    "very",
    "not",
    "good",
    "great",
    "fine",
    "bad",
    "poor",
    "dull",
]
VOCABULARY = len(WORDS)
REVIEWS = [  # and whether they praise
    (" ".join((article, thing, verb, *adverb, word)), int((word in ("good", "great", "fine")) != ("not" in adverb)))
    for word in ("good", "bad", "great", "poor", "fine", "dull")
    for adverb in ((), ("very",), ("not",))
    for article in ("the", "a")
    for thing in ("film", "book")
    for verb in ("was", "is")
]


def tokens(sentence, length=6):
    ids = [WORDS.index(word) for word in sentence.split()]
    return ids + [0] * (length - len(ids)), [1] * len(ids) + [0] * (length - len(ids))


def collate(samples):
    ids, masks = zip(*(tokens(sentence) for sentence, _ in samples), strict=True)
    labels = torch.tensor([label for _, label in samples])
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks), "labels": labels}


def reader(width, vocabulary=VOCABULARY):
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * width,
        num_labels=2,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    return transformers.BertForSequenceClassification(config)


def texts(collate=collate):
    return DataLoader(REVIEWS[::3] + REVIEWS[1::3] + REVIEWS[2::3], 24, collate_fn=collate)


def adam(parameters):
    return torch.optim.Adam(parameters, 0.01)


def test_a_text_classifier_is_distilled(trainer, tmp_path):
    run = trainer(max_epochs=40)
    teacher = ClassificationModule(reader(16), optimizer=adam)
    run.fit(teacher, texts(), texts())
    assert run.callback_metrics["val/acc1"] > 0.9
    bias = by_gamma("drop", "batch", "ramp", trust="class")
    module = DistillationModule(reader(8), teacher.model, KD(), bias, optimizer=adam)
    before = copy.deepcopy(teacher.model.state_dict())
    run = trainer(max_epochs=40, callbacks=[BiasMonitor()])
    run.fit(module, texts(), texts())
    assert run.callback_metrics["val/acc1"] > 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())
    assert trainer().predict(module, texts())[0].shape == (24, 2)
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = DistillationModule(reader(8), teacher.model, KD(), bias, optimizer=adam)
    (tested,) = trainer(callbacks=[BiasMonitor()]).test(again, texts(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert tested["test/acc1"] == pytest.approx(run.callback_metrics["val/acc1"].item())


class Texts(LightningDataModule):
    """The texts as a data module, as the command line takes them."""

    num_classes = 2

    def train_dataloader(self):
        return texts()

    val_dataloader = test_dataloader = train_dataloader


def test_a_text_pair_is_audited(trainer):
    module = DistillationModule(reader(8), reader(16), KD())
    report = audit(module, Texts(), trainer(**QUIET))
    batch = collate(REVIEWS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    right = module.teacher(inputs).logits.argmax(1) == batch["labels"]
    assert (report.views, report.wrong) == (len(REVIEWS), int((~right).sum()))


def test_a_text_classifier_is_exported_as_weights(tmp_path):
    student, batch = reader(8), collate(REVIEWS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    path = export_student(student, tmp_path / "student.safetensors", inputs, label_names=["bad", "good"])
    loaded = load_student(path, reader(8))
    assert torch.equal(loaded(**inputs).logits, student.eval()(**inputs).logits)
    assert json.loads(path.with_suffix(".safetensors.json").read_text())["inputs"] == ["input_ids", "attention_mask"]
    with pytest.raises(UserError, match="takes input_ids, attention_mask, and graphs take images: export to safeten"):
        export_student(student, tmp_path / "student.onnx", inputs)


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ({}, "an example of each input"),
        ({"input_ids": [[1, 2]]}, "an example of each input"),
        ({"input_ids": torch.ones(2, 5).long(), "attention_mask": torch.ones(3, 5)}, "an example of each input"),
        ({"input_ids": torch.full((2, 5), VOCABULARY)}, "does not take this example of input_ids"),
        ({"input_ids": torch.rand(2, 5)}, "does not take this example of input_ids"),
    ],
)
def test_an_example_that_does_not_fit_is_told(example, told, tmp_path):
    with pytest.raises(UserError, match=told):
        export_student(reader(4), tmp_path / "student.safetensors", example)
    assert not list(tmp_path.iterdir())


def test_the_command_exports_it_from_its_checkpoint(trainer, tmp_path):
    module = DistillationModule(reader(8), reader(16), KD())
    run = trainer(max_epochs=1)
    run.fit(module, datamodule=Texts())
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = DistillationModule(reader(8), reader(16), KD())
    path = Commands(**QUIET).export(again, Texts(), str(tmp_path / "last.ckpt"), str(tmp_path / "student.safetensors"))
    assert unchanged(snapshot(module.student), load_student(path, reader(8)))


def test_the_step_is_that_of_the_networks_called_by_hand():
    student, teacher = reader(8), reader(16)
    batch = collate(REVIEWS[:8])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    step = Distillation(student.eval(), teacher, KD(), bias=None)(inputs, batch["labels"])
    with torch.no_grad():
        expected = KD()(*(type(step.student)(network.eval()(**inputs).logits) for network in (student, teacher)), None)
    torch.testing.assert_close(step.logged["train/loss_kd"], expected.mean())


def test_different_vocabularies_are_refused_in_one_line():
    with pytest.raises(UserError, match="vocabulary of 16 tokens and the teacher one of 30: both need the same tokeni"):
        Distillation(reader(8, 16), reader(8, 30))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda batch: {"labels": batch["labels"]}, "let it hold the inputs of the network by name"),
        (lambda batch: {"input_ids": batch["input_ids"]}, "return .* from its loader"),
        (lambda batch: {**batch, "labels": batch["labels"][:3]}, "24 images and 3 labels"),
    ],
)
def test_mappings_that_lack_something_are_told(changed, told, trainer):
    module = ClassificationModule(reader(8))
    with pytest.raises(UserError, match=told):
        trainer().test(module, texts(lambda samples: changed(collate(samples))), verbose=False)


@pytest.mark.parametrize("form", ["mapping", "pair", "encoding"])
def test_image_classifiers_of_transformers_take_their_own_batches(form, trainer):
    def network(width):
        config = transformers.ViTConfig(
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            image_size=8,
            patch_size=4,
        )
        config.num_labels = 3
        return transformers.ViTForImageClassification(config)

    def batch(samples):
        pixels, labels = torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
        named = {"pixel_values": pixels}
        if form == "pair":
            return named, labels
        return (
            {**named, "labels": labels} if form == "mapping" else transformers.BatchFeature({**named, "labels": labels})
        )

    images = [(torch.randn(3, 8, 8), number % 3) for number in range(12)]
    loader = DataLoader(images, 4, collate_fn=batch)
    module = DistillationModule(network(8), network(16), KD())
    trainer().fit(module, loader, loader)
    (tested,) = trainer().test(module, loader, verbose=False)
    plain = DataLoader(images, 4)
    (expected,) = trainer().test(module, plain, verbose=False)
    assert tested == expected


def test_tokens_are_rows_and_the_padding_counts_nowhere(trainer):
    class Tagger(nn.Module):
        """A logit for each token, as transformers answers: classes last."""

        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Embedding(len(WORDS), 8), nn.Linear(8, 3))

        def forward(self, input_ids, attention_mask):
            return {"logits": self.network(input_ids)}

    def tagged(samples):
        batch = collate(samples)
        tags = batch["input_ids"] % 3
        return {**batch, "labels": torch.where(batch["attention_mask"] == 1, tags, -100)}

    module = DistillationModule(
        Tagger(), Tagger(), KD(), by_gamma("swap"), ignore_index=-100, optimizer=lambda p: torch.optim.Adam(p, 0.05)
    )
    run = trainer(max_epochs=10)
    loader = texts(tagged)
    run.fit(module, loader, loader)
    batch = tagged(REVIEWS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    known = batch["labels"] != -100
    right = (module.eval()(inputs).argmax(1) == batch["labels"])[known]
    assert run.callback_metrics["val/acc1"].item() == pytest.approx(right.float().mean().item(), abs=1e-6)
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("backend", ["plain", "fast"])
def test_token_numbers_without_a_name_stay_integers(backend):
    readers = [nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Flatten(), nn.Linear(24, 2)) for _ in range(2)]
    module = DistillationModule(*readers, KD(), teacher_backend=backend)
    ids = collate(REVIEWS[:4])["input_ids"]
    torch.testing.assert_close(module.teacher(ids).logits, readers[1](ids))


def test_onnx_runtime_takes_no_named_inputs():
    module = DistillationModule(reader(8), reader(16), teacher_backend="onnxruntime")
    batch = collate(REVIEWS[:4])
    with pytest.raises(UserError, match="takes images, not named tensors"):
        module.teacher({name: batch[name] for name in ("input_ids", "attention_mask")})


def test_tokens_whose_classes_are_last_are_told(trainer):
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, 3)

        def forward(self, input_ids):
            return self.embedding(input_ids)

    batch = {"input_ids": torch.ones(2, 5).long(), "labels": torch.zeros(2, 5).long()}
    loader = DataLoader([batch], batch_size=None)
    with pytest.raises(UserError, match=r"logits \(2, 5, 3\) for labels \(2, 5\): give the classes before the tokens"):
        trainer().fit(DistillationModule(Raw(), Raw()), loader, loader)
