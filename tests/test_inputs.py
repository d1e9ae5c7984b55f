from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import CLASSES, CompilationCount, TinyData, by_gamma, network, snapshot, unchanged
from torch import nn
from torchvision.transforms.v2 import functional as ops

from lightning_biaskd import (
    ClassificationModule,
    DistillationModule,
    FrozenTeacher,
    InputConversion,
    InputSpec,
    UserError,
)

GREY, COLOUR = InputSpec([0.3], [0.4]), InputSpec([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])


class GreyData(TinyData):
    mean, std = (0.3,), (0.4,)


def colour_network(classes=CLASSES):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def normalised(pixels, spec):
    return ops.normalize(pixels, list(spec.mean), list(spec.std))


@pytest.mark.parametrize("given", [GREY, COLOUR])
@pytest.mark.parametrize("wanted", [GREY, COLOUR, InputSpec()])
def test_a_conversion_is_what_normalising_the_pixels_would_have_been(given, wanted):
    pixels = torch.rand(4, given.channels, 8, 8)
    expected = pixels
    if given.channels < wanted.channels:
        expected = pixels.expand(-1, 3, -1, -1)
    elif given.channels > wanted.channels:
        red, green, blue = pixels.unbind(1)
        expected = (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
    converted = InputConversion(wanted, given)(normalised(pixels, given))
    torch.testing.assert_close(converted, normalised(expected, wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [4, (12, 20)])
def test_a_conversion_resizes_as_torchvision_does(interpolation, size):
    pixels = torch.rand(2, 3, 9, 9)
    wanted = InputSpec(COLOUR.mean, COLOUR.std, size, interpolation)
    mode = ops.InterpolationMode(interpolation)
    expected = ops.resize(pixels, [size, size] if isinstance(size, int) else list(size), mode, antialias=True)
    converted = InputConversion(wanted, InputSpec())(normalised(pixels, InputSpec()))
    torch.testing.assert_close(converted, normalised(expected, COLOUR), rtol=1e-4, atol=1e-5)


def test_a_conversion_is_compiled_whole_and_keeps_the_type():
    conversion = InputConversion(InputSpec(size=12), GREY)
    count = CompilationCount()
    compiled = torch.compile(conversion, backend=count, fullgraph=True)
    for image in torch.randn(2, 3, 1, 8, 8):
        torch.testing.assert_close(compiled(image), conversion(image))
    assert count.graphs == 1
    assert not list(conversion.parameters())
    assert not conversion.state_dict()
    assert conversion(image.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: InputSpec([0.5], [0.1, 0.2]), "one number per channel"),
        (lambda: InputSpec([0.5], [0.0]), "std above 0"),
        (lambda: InputConversion(InputSpec([0.0] * 4, [1.0] * 4), GREY), "images of 1 channels can't be made into 4"),
        (lambda: InputConversion(InputSpec())(torch.zeros(1, 1, 4, 4)), "isn't known how the images are normalised"),
        (lambda: InputConversion(COLOUR, GREY)(torch.zeros(1, 3, 4, 4)), "images have 3 channels, .* of 1"),
        (lambda: ClassificationModule(network(), model_input="pretrained"), "Sequential carries no pretrained_cfg"),
    ],
)
def test_a_mistake_is_one_line(run, says):
    with pytest.raises(UserError, match=says):
        run()


class Records(nn.Module):
    """Notes what it sees."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        self.seen = image
        return self.model(image)


def test_the_module_hands_each_network_what_it_was_trained_with(trainer):
    teacher, student = Records(colour_network()), Records(network())
    inputs = {"teacher_input": InputSpec(size=12), "student_input": InputSpec([0.5], [0.5])}
    run = trainer()
    run.fit(DistillationModule(student, teacher, **inputs), GreyData())
    image = run.datamodule.loader.dataset.tensors[0][-8:]
    torch.testing.assert_close(teacher.seen, InputConversion(InputSpec(size=12), GREY)(image))
    torch.testing.assert_close(student.seen, (image * 0.4 + 0.3 - 0.5) / 0.5)


def test_a_network_of_its_own_input_trains_and_predicts_as_one_on_converted_images(trainer):
    class Converted(GreyData):
        def __init__(self):
            super().__init__()
            images, target = self.loader.dataset.tensors
            self.loader.dataset.tensors = ((images * 0.4 + 0.3 - 0.5) / 0.5, target)

    first, second = network(), network()
    second.load_state_dict(first.state_dict())
    sgd = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1)}
    trainer().fit(ClassificationModule(first, model_input=InputSpec([0.5], [0.5]), **sgd), GreyData())
    trainer().fit(ClassificationModule(second, **sgd), Converted())
    torch.testing.assert_close(dict(first.state_dict()), dict(second.state_dict()), rtol=1e-4, atol=1e-5)


def test_loaders_without_statistics_need_data_input(trainer):
    def fit(**kwargs):
        module = DistillationModule(network(), colour_network(), teacher_input=COLOUR, **kwargs)
        trainer().fit(module, TinyData())
        return module

    with pytest.raises(UserError, match="give data_input, or a data module with mean and std"):
        fit()
    module = fit(data_input=GREY)
    image = torch.randn(2, 1, 6, 6)
    expected = module.teacher.model(InputConversion(COLOUR, GREY)(image))
    torch.testing.assert_close(module.teacher(image).logits, expected)


def test_what_data_input_says_counts_more_than_the_data_module(trainer):
    module = ClassificationModule(network(), model_input=GREY, data_input=InputSpec([0.0], [1.0]))
    trainer().test(module, GreyData(), verbose=False)
    assert module.convert.given == InputSpec([0.0], [1.0])


def test_in_a_loop_of_ones_own(trainer):
    convert = InputConversion(COLOUR, GREY)
    teacher = FrozenTeacher(colour_network(), convert=convert)
    image = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(teacher(image).logits, teacher.model(convert(image)))
    module = DistillationModule(network(), teacher)
    torch.testing.assert_close(module.teacher(image).logits, teacher(image).logits)
    assert module.double().teacher.convert.scale.dtype == torch.float64


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_input_is_in_no_checkpoint_and_loads_back(trainer, tmp_path):
    saving = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(dirpath=tmp_path, filename="run")]}
    student, teacher = network(), colour_network()
    inputs = {"student_input": InputSpec([0.5], [0.5]), "teacher_input": COLOUR}
    trainer(**saving).fit(DistillationModule(student, teacher, bias=None, **inputs), GreyData())
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {f"model.{name}" for name in student.state_dict()}
    for again in (inputs, {}):
        loaded = DistillationModule.load_from_checkpoint(
            tmp_path / "run.ckpt", student=network(), teacher=teacher, **again
        )
        assert unchanged(snapshot(student), loaded.student)
        assert (loaded.convert.wanted, loaded.teacher.convert.wanted) == tuple(inputs.values())


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_classifier_is_loaded_with_its_input(trainer, tmp_path):
    saving = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(dirpath=tmp_path, filename="run")]}
    inputs = {"model_input": InputSpec([0.5], [0.5], 4), "data_input": GREY}
    trainer(**saving).fit(ClassificationModule(network(), **inputs), TinyData())
    loaded = ClassificationModule.load_from_checkpoint(tmp_path / "run.ckpt", model=network())
    assert (loaded.convert.wanted, loaded.convert.given) == tuple(inputs.values())


def published(**cfg):
    model = network()
    model.pretrained_cfg = {"mean": (0.5,), "std": (0.2,), "input_size": (1, 10, 10), "interpolation": "bicubic", **cfg}
    return model


def test_what_timm_published_is_taken_by_choice(trainer):
    module = DistillationModule(network(), published(), teacher_input="pretrained")
    trainer().fit(module, GreyData())
    assert module.teacher.convert.wanted == InputSpec([0.5], [0.2], 10, "bicubic")


def test_a_published_teacher_on_other_images_is_told(trainer, tmp_path):
    with pytest.warns(UserWarning, match="set teacher_input to 'pretrained'"):
        trainer().fit(DistillationModule(network(), published()), GreyData())
    torch.save(network().state_dict(), tmp_path / "own.pt")
    same = published(mean=(0.3,), std=(0.4,))
    for module in (
        DistillationModule(network(), published(), teacher_weights=str(tmp_path / "own.pt")),
        DistillationModule(network(), published(), teacher_input=GREY),
        DistillationModule(network(), same),
    ):
        trainer().fit(module, GreyData())  # a warning would be an error


def test_the_step_compiles_with_another_input():
    module = DistillationModule(
        network(), colour_network(), bias=by_gamma("swap"), teacher_input=InputSpec(size=8), data_input=GREY
    ).eval()

    def step(image, target):
        return module.bias(module.distiller, module.outputs_of(image), module.teacher(image), target).total

    image, target = torch.randn(8, 1, 6, 6), torch.arange(8) % 6
    expected = step(image, target)  # the first call prepares the teacher
    compiled = torch.compile(step, backend=CompilationCount(), fullgraph=True)
    torch.testing.assert_close(compiled(image, target), expected)


def test_a_data_module_without_mean_says_nothing():
    assert InputSpec.of_data(None) is None
    assert InputSpec.of_data(LightningDataModule()) is None
    assert InputSpec.of_data(SimpleNamespace(mean=(0.3,), std=(0.4,))) == GREY
