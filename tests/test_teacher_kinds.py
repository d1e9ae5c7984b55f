"""Teachers of every kind: each works in training, testing, audit, cache and compilation, or is refused in one line."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from tiny import snapshot, unchanged
from torch import nn
from torch.export import Dim

from lightning_biaskd import (
    ClassificationModule,
    DistillationModule,
    FrozenTeacher,
    InputSpec,
    UserError,
    export_student,
    load_student,
)
from lightning_biaskd.audit import audit
from lightning_biaskd.data import DigitsDataModule
from lightning_biaskd.distillers import KDSVD, NST, FitNet
from lightning_biaskd.models import CIFARResNet, resnet8
from lightning_biaskd.networks.inputs import InputConversion
from lightning_biaskd.training.fill_cache import fill_cache
from lightning_biaskd.training.passes import QUIET

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning", "ignore:.*is deprecated")


def net(seed=0):
    torch.manual_seed(seed)
    return CIFARResNet(8, 10, 1, (4,) * 4).eval()


def student():
    return net(1).train()


class Wrapped(nn.Module):
    """Gives the logits of a small network in another form."""

    def __init__(self, form):
        super().__init__()
        self.net = net()
        self.form = form

    def forward(self, image):
        return self.form(self.net(image))


class Answer(dict):
    """As Hugging Face's ModelOutput: a dict whose values are attributes too."""

    @property
    def logits(self):
        return self["logits"]


def scripted(folder, frozen=False):
    graph = torch.jit.trace(net(), torch.zeros(2, 1, 8, 8))
    graph = torch.jit.freeze(graph) if frozen else graph
    torch.jit.save(graph, folder / "net.pt")
    return torch.jit.load(folder / "net.pt")


def exported(network=None, batch=True):
    shapes = ({0: Dim("batch")},) if batch else None
    return torch.export.export(network or net(), (torch.zeros(4, 1, 8, 8),), dynamic_shapes=shapes)


def onnx(folder):
    return load_student(export_student(net(), folder / "net.onnx", InputSpec([0.5], [0.5], 8)))


TEACHERS = {
    "dict": lambda _: Wrapped(lambda z: {"logits": z, "aux": None}),
    "object": lambda _: Wrapped(lambda z: Answer(logits=z)),
    "bfloat16 outputs": lambda _: Wrapped(lambda z: z.bfloat16()),
    "half": lambda _: net().half(),
    "bfloat16": lambda _: net().bfloat16(),
    "double": lambda _: net().double(),
    "TorchScript": scripted,
    "frozen TorchScript": lambda folder: scripted(folder, frozen=True),
    "around TorchScript": lambda folder: nn.Sequential(scripted(folder), nn.Dropout()).train(),
    "exported program": lambda _: exported(),
    "around an exported module": lambda _: nn.Sequential(nn.Dropout(), exported().module(), nn.Dropout()),
    "ONNX": onnx,
    "compiled": lambda _: torch.compile(net(), backend="eager"),
    "DataParallel": lambda _: nn.DataParallel(net()),
    "ClassificationModule": lambda _: ClassificationModule(net()),
    "DistillationModule": lambda _: DistillationModule(net(), net(1)),
}


def data():
    return DigitsDataModule(views=1, train_size=20, val_split=16, batch_size=16)


@pytest.mark.parametrize("kind", TEACHERS)
def test_every_path_runs_it(kind, trainer, tmp_path):
    build = TEACHERS[kind]
    image = torch.randn(4, 1, 8, 8)
    module = DistillationModule(student(), build(tmp_path), teacher_cache=str(tmp_path / "cache"))
    tolerance = 5e-2 if kind in ("half", "bfloat16", "bfloat16 outputs") else 1e-4
    torch.testing.assert_close(module.teacher(image).logits.float(), net()(image), rtol=tolerance, atol=tolerance)
    before = snapshot(module.teacher.model)
    trainer(limit_test_batches=1).test(module, data(), verbose=False)
    audit(module, data(), trainer(**QUIET))
    fill_cache(module, data(), trainer(**QUIET))
    trainer().fit(module, data())
    assert unchanged(before, module.teacher.model)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("kind", ["object", "half", "double", "TorchScript", "frozen TorchScript", "exported program"])
def test_every_precision_runs_it(kind, precision, trainer, tmp_path):
    module = DistillationModule(student(), TEACHERS[kind](tmp_path))
    trainer(precision=precision, limit_train_batches=1, limit_val_batches=1).fit(module, data())


@pytest.mark.parametrize("backend", ["plain", "fast"])
def test_a_precision_of_its_own_outlives_that_of_the_run(backend, trainer):
    teacher, image = net(), torch.randn(4, 1, 8, 8)
    before, expected = snapshot(teacher), teacher(image)
    module = DistillationModule(student(), teacher, teacher_backend=backend, teacher_precision="32")
    trainer(precision="bf16-true", limit_train_batches=1, limit_val_batches=1).fit(module, data())
    assert module.student.fc.weight.dtype == torch.bfloat16
    assert unchanged(before, module.teacher.model)
    torch.testing.assert_close(module.teacher(image).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("distiller", [NST(), KDSVD()])
def test_features_in_two_precisions_are_compared_in_the_higher(distiller, trainer):
    module = DistillationModule(student(), net(), distiller, teacher_precision="32")
    trainer(precision="64-true", limit_train_batches=1, limit_val_batches=1).fit(module, data())


def test_half_precision_follows_what_is_asked(tmp_path):
    image, single = torch.randn(4, 1, 8, 8), net().bfloat16().float()
    teacher = FrozenTeacher(net().bfloat16(), precision="32")
    torch.testing.assert_close(teacher(image).logits, single(image), rtol=1e-4, atol=1e-4)
    assert FrozenTeacher(net().half()).precision == "16"
    with pytest.raises(UserError, match="no weights that could be put in teacher_precision 'bf16'"):
        FrozenTeacher(scripted(tmp_path, frozen=True), precision="bf16")(image)


@pytest.mark.parametrize("kind", ["object", "dict", "bfloat16 outputs", "exported program"])
def test_onnx_runtime_takes_outputs_of_every_form(kind, tmp_path):
    image = torch.randn(4, 1, 8, 8)
    teacher = FrozenTeacher(TEACHERS[kind](tmp_path), backend="onnxruntime")
    torch.testing.assert_close(teacher(image).logits, net()(image), rtol=2e-2, atol=2e-2)


def test_what_cannot_be_compiled_runs_without(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, image):
            return self.net(image) if image.sum().item() > 1e9 else self.net(image) * 2

    image = torch.randn(4, 1, 8, 8)
    with pytest.warns(UserWarning, match="can't be compiled, so it runs without"):
        logits = FrozenTeacher(Branching(), backend="compile")(image).logits
    torch.testing.assert_close(logits, 2 * net()(image), rtol=1e-4, atol=1e-4)
    graph = FrozenTeacher(scripted(tmp_path), backend="compile")
    torch.testing.assert_close(graph(image).logits, net()(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda _: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "'1.weight' of Sequential has no values yet"),
        (lambda _: net().to("meta"), "has no values yet"),
        (lambda _: lambda image: image, "a network is an nn.Module"),
        (lambda _: Wrapped(lambda z: (z, z)), "returned a tuple without logits"),
        (lambda _: Wrapped(lambda z: z[:, 0]), r"logits of shape \(4,\): a teacher gives"),
        (lambda _: exported(batch=False), "does not take 2 images .* capture it for batches of any size"),
        (lambda _: exported(net().train()), "changes its buffers when it runs"),
        (lambda _: resnet8(10, 3), r"does not take 4 images of shape \(1, 8, 8\)"),
    ],
)
def test_what_cannot_teach_is_one_line(teacher, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        DistillationModule(student(), teacher(tmp_path)).teacher(torch.randn(4, 1, 8, 8))
    assert "\n" not in str(error.value)


def test_graphs_have_no_features(tmp_path):
    for build in (scripted, lambda _: exported()):
        with pytest.raises(UserError, match="a captured graph, whose layers can't be read"):
            DistillationModule(student(), build(tmp_path), FitNet())


def test_a_module_of_ours_loads_its_weights(trainer):
    bare = ClassificationModule(resnet8(10, 1), weights="builtin:digits_resnet8")
    module = DistillationModule(student(), bare)
    run = trainer(limit_train_batches=1)
    run.fit(module, data())
    (values,) = run.test(module, data(), verbose=False)
    assert values["test/teacher_acc1"] > 0.9


def test_conversions_inside_a_teacher_learn_from_the_data(trainer):
    spec = InputSpec([0.1], [0.2], 8)
    image, given = torch.randn(4, 1, 8, 8), InputSpec(DigitsDataModule.mean, DigitsDataModule.std)
    expected = net()(InputConversion(spec, given)(image))
    inside = nn.Sequential(InputConversion(spec), net())
    for teacher in (inside, ClassificationModule(net(), model_input=spec)):
        module = DistillationModule(student(), teacher)
        module.connect_data(data())
        torch.testing.assert_close(module.teacher(image).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_teacher_in_a_teacher_is_one_line():
    with pytest.raises(UserError, match="a FrozenTeacher already"):
        FrozenTeacher(FrozenTeacher(net()))


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, image):
        return F.dropout(self.net(image), 0.1)


def batch_statistics():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


class TrainingNorm(nn.Module):
    """Normalises over the batch without a module that would show it."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, image):
        return F.batch_norm(self.net(image), None, None, training=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Dropping, "gives other outputs each time"),
        (batch_statistics, "depend on the other images"),
        (TrainingNorm, "depend on the other images"),
    ],
)
def test_outputs_that_are_not_of_the_image_are_warned_of_and_not_stored(build, message, trainer, tmp_path):
    network = build()
    for backend in ("plain", "fast"):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            FrozenTeacher(network, backend=backend)(torch.randn(8, 1, 8, 8))
        assert [message in str(warning.message) for warning in seen] == [True]
    module = DistillationModule(student(), network, teacher_cache=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=f"can't be stored: .*{message}.*, or train without a cache"):
            trainer().fit(module, data())


def test_trying_a_teacher_draws_nothing():
    after = []
    for network in (net(), Dropping()):
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            FrozenTeacher(network).forward(torch.zeros(8, 1, 8, 8))
        after.append(torch.rand(1))
    torch.manual_seed(3)
    F.dropout(torch.zeros(8, 10), 0.1)  # of the call itself
    assert after[0] != after[1]
    assert after[1] == torch.rand(1)


@pytest.mark.parametrize("last", [lambda: nn.Softmax(1), nn.Sigmoid])
def test_probabilities_are_warned_of(last, trainer):
    sure = nn.Sequential(resnet8(10, 1), last())
    teacher = DistillationModule(student(), sure)
    with pytest.warns(UserWarning, match="outputs of the teacher look like probabilities.*leave out the softmax"):
        audit(teacher, data(), trainer(**QUIET))
    alone = ClassificationModule(nn.Sequential(student(), last()))
    with pytest.warns(UserWarning, match="outputs of Sequential look like probabilities"):
        trainer(limit_train_batches=1, limit_val_batches=0).fit(alone, data())


@pytest.mark.parametrize("last", [lambda: nn.LogSoftmax(1), nn.Identity])
def test_logits_of_any_constant_are_not(last, trainer):
    blank = nn.Sequential(student(), last())
    for parameter in blank[0].fc.parameters():
        nn.init.zeros_(parameter)  # as transformers' heads begin
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*look like probabilities.*")
        module = DistillationModule(blank, nn.Sequential(net(), last()))
        trainer(limit_train_batches=1, limit_val_batches=1).fit(module, data())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (scripted, "can be a teacher but no student"),
        (lambda _: exported().module(), "can be a teacher but no student"),
        (lambda _: nn.DataParallel(net(1)), "wrapped in DataParallel: give the network inside"),
        (lambda _: torch.compile(net(1), backend="eager"), "wrapped in OptimizedModule"),
        (lambda _: net(1).half(), "came in half precision"),
    ],
)
def test_students_that_could_not_be_trained_or_exported_are_one_line(build, message, trainer, tmp_path):
    with pytest.raises(UserError, match=message):
        trainer().fit(DistillationModule(build(tmp_path), net()), data())


@pytest.mark.parametrize("ending", ["safetensors", "pt2", "onnx"])
def test_a_student_that_returns_a_dict_is_exported(ending, tmp_path):
    path = export_student(Wrapped(lambda z: {"logits": z}), tmp_path / f"student.{ending}", InputSpec([0.5], [0.5], 8))
    assert path.is_file()


def test_a_graphs_fingerprint_is_of_its_weights(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first, again = (FrozenTeacher(scripted(folder, frozen=True)).fingerprint() for folder in folders)
    assert first == again
    other = torch.jit.freeze(torch.jit.trace(net(1), torch.zeros(2, 1, 8, 8)))
    assert FrozenTeacher(other).fingerprint() != first
    fixed = [nn.Sequential(nn.Flatten()) for _ in "12"]
    for value, network in enumerate(fixed):
        network.register_buffer("table", torch.full((3,), float(value)), persistent=False)
    assert FrozenTeacher(fixed[0]).fingerprint() != FrozenTeacher(fixed[1]).fingerprint()
