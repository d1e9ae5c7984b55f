import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from data_files import write_idx
from lightning.pytorch import LightningModule
from tiny import snapshot, unchanged

import lightning_biaskd
from lightning_biaskd import ClassificationModule, DistillationModule, load_weights
from lightning_biaskd.__main__ import main
from lightning_biaskd.command_line import BiasKDCLI, run
from lightning_biaskd.command_line.arguments import BriefParser
from lightning_biaskd.command_line.complaints import explained
from lightning_biaskd.models import CIFARResNet

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:.*callbacks used to create")
FAST = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"]
FAST += ["--trainer.limit_test_batches", "2", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
FAST += ["--trainer.log_every_n_steps", "1"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkpoint():
    main(["fit", *FAST])
    return "runs/quickstart/version_0/checkpoints/last.ckpt"


def fails(capsys, *args):
    """Runs a command that must fail; returns its one line."""
    with pytest.raises(SystemExit) as error:
        main(list(args))
    assert error.value.code not in (0, None)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("biaskd: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_fit_prints_the_table_and_test_finds_the_configuration_of_the_run(capsys, checkpoint):
    table = capsys.readouterr().out
    for words in ("student", "teacher", "gap", "top-1 accuracy", "images only it gets right"):
        assert words in table
    main(["test", f"--ckpt_path={checkpoint}", *FAST[4:8]])
    numbers = [re.findall(r"top-1 accuracy.*", text)[0] for text in (table, capsys.readouterr().out)]
    assert numbers[0] == numbers[1]


def test_a_config_of_another_thing_is_not_taken_for_that_of_the_run(capsys):
    Path("config.yaml").write_text("model: {class_path: lightning_biaskd.Nothing}")
    with pytest.raises(SystemExit) as end:
        main(["fit", "--ckpt_path", "last", "--print_config"])
    assert end.value.code == 0
    assert "builtin:digits_resnet8" in capsys.readouterr().out


def test_a_checkpoint_is_named_from_beside_it(checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(Path(checkpoint).parent)
    main(["test", "--ckpt_path", "last.ckpt", *FAST[6:10], "--trainer.logger", "false"])
    assert "On the test images" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_the_other_commands_take_a_checkpoint(command, checkpoint, monkeypatch):
    loaded = []
    load = DistillationModule.on_load_checkpoint
    monkeypatch.setattr(
        DistillationModule, "on_load_checkpoint", lambda self, content: (loaded.append(content), load(self, content))
    )
    main([command, "--ckpt_path", checkpoint, "--trainer.limit_predict_batches", "1", *FAST[6:10]])
    assert [content["global_step"] for content in loaded] == [3]


def test_a_run_of_the_command_line_loads_from_its_checkpoint(checkpoint):
    module = DistillationModule.load_from_checkpoint(checkpoint)
    assert isinstance(module.student, CIFARResNet)
    assert module.bias.mode == "swap"
    alone = CIFARResNet(8, 10, 1, (4, 4, 8, 16))
    load_weights(alone, checkpoint)
    assert unchanged(snapshot(module.student), alone)


def test_the_last_checkpoint_is_that_of_the_last_epoch(capsys):
    slow = ["--model.lr_scheduler", "CosineAnnealingLR", "--model.lr_scheduler.T_max", "60"]
    slow += ["--model.bias.discount", "0"]
    main(["fit", *FAST, *slow, "--trainer.max_epochs", "6", "--trainer.limit_train_batches", "4"])
    folder = Path("runs/quickstart/version_0/checkpoints")
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.iterdir()}
    assert steps["best.ckpt"] < steps["last.ckpt"] == 24  # the best epoch of this short run isn't its last


def test_a_run_goes_on_from_its_checkpoint(checkpoint):
    main(["fit", "--ckpt_path", checkpoint, *FAST, "--trainer.max_epochs", "2"])
    resumed = torch.load("runs/quickstart/version_1/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == 6


def test_a_teacher_is_trained_and_then_taught_by(capsys):
    write_idx(Path("fashion"))
    root = ["--data.root", "fashion", "--data.val_split", "10"]
    main(["fit", "-c", "configs/recipe/teacher_fashion_mnist.yaml", *root, *FAST])
    assert "network" in capsys.readouterr().out
    path = "runs/teacher_fashion_mnist/version_0/checkpoints/last.ckpt"
    assert isinstance(ClassificationModule.load_from_checkpoint(path).model, CIFARResNet)
    parts = ("data/fashion_mnist", "pair/fashion_mnist_resnet14_resnet8", "method/dkd", "bias/swap")
    files = [word for part in parts for word in ("-c", f"configs/{part}.yaml")]
    main(["fit", *files, "--test_after_fit", "true", *root, *FAST])
    assert "images only it gets right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("lightning_biaskd.models.resnet20", []),
        ("torchvision.models.resnet18", []),
        ("timm.create_model", ["--model.student.model_name", "resnet10t", "--model.student.dict_kwargs.in_chans", "1"]),
    ],
)
def test_networks_of_other_libraries_are_named_like_ours(model, arguments):
    key = "dict_kwargs." if "timm" in model else ""
    channels = {"lightning_biaskd": ["--model.student.in_channels", "1"]}.get(model.split(".")[0], [])
    student = ["--model.student", model, f"--model.student.{key}num_classes", "10", *arguments, *channels]
    # torchvision's networks are built for colour: the stem is what a shape error would name
    if model.startswith("torchvision"):
        student += ["--trainer.limit_train_batches", "0", "--trainer.limit_val_batches", "0"]
        student += ["--test_after_fit", "false"]
    main(["fit", *FAST, *student])
    saved = yaml.safe_load(Path("runs/quickstart/version_0/config.yaml").read_text())["model"]["init_args"]["student"]
    assert saved["class_path"] == model
    assert {**saved["init_args"], **saved.get("dict_kwargs", {})}["num_classes"] == 10


def test_each_generation_teaches_the_next():
    network = (
        "{class_path: lightning_biaskd.models.CIFARResNet, init_args: {depth: 8, num_classes: 10, in_channels: 1, "
    )
    network += "widths: [4, 4, 8, 16]}}"
    students = []
    for generation, weights in enumerate((None, "runs/quickstart/version_0/checkpoints/last.ckpt")):
        teacher = [] if weights is None else ["--model.teacher", network, "--model.teacher_weights", weights]
        main(["fit", *FAST, *teacher])
        path = f"runs/quickstart/version_{generation}/checkpoints/last.ckpt"
        students.append(DistillationModule.load_from_checkpoint(path))
    assert unchanged(snapshot(students[0].student), students[1].teacher.model)
    assert not unchanged(snapshot(students[0].student), students[1].student)


def test_a_teacher_is_trained_on_mixed_images():
    mix = "{class_path: torchvision.transforms.v2.RandomChoice, init_args: {transforms: [{class_path: "
    mix += (
        "torchvision.transforms.v2.CutMix}, {class_path: torchvision.transforms.v2.MixUp, init_args: {alpha: 0.2}}]}}"
    )
    main(["fit", "-c", "configs/recipe/teacher_digits.yaml", "--data.mix", mix, *FAST])
    path = "runs/teacher_digits/version_0/checkpoints/last.ckpt"
    assert 0 <= torch.load(path, weights_only=True)["metrics"]["train/acc1"] <= 1


TIMM = "{class_path: timm.create_model, init_args: {model_name: test_resnet}, dict_kwargs: {num_classes: 10}}"
TORCHVISION = "{class_path: torchvision.models.mobilenet_v3_small, dict_kwargs: {num_classes: 10}}"


@pytest.mark.parametrize(
    ("teacher", "seen", "size"),
    [
        (TIMM, "pretrained", (160, 160)),
        (TORCHVISION, "{mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2], size: 32}", (32, 32)),
    ],
)
def test_a_teacher_of_another_library_and_input_by_yaml_alone(tmp_path, teacher, seen, size):
    lines = [f"teacher: {teacher}", "teacher_weights: null", f"teacher_input: {seen}"]
    lines += [f"teacher_classes: {[*range(9, -1, -1)]}"]
    Path("teacher.yaml").write_text(f"model: {{init_args: {{{', '.join(lines)}}}}}")
    files = ["-c", "configs/quickstart.yaml", "-c", "teacher.yaml"]
    main(["fit", *files, "--data.batch_size", "4", *FAST])
    path = "runs/quickstart/version_0/checkpoints/last.ckpt"
    main(["test", "--ckpt_path", path, *FAST[4:10]])
    teacher = DistillationModule.load_from_checkpoint(path).teacher
    assert teacher.convert.wanted.size == size
    assert teacher.classes.index.tolist() == [*range(9, -1, -1)]


ONE_CYCLE = ["--model.lr_scheduler", "torch.optim.lr_scheduler.OneCycleLR", "--model.lr_scheduler.max_lr", "0.1"]
ONE_CYCLE += ["--model.lr_scheduler.total_steps", "2", "--model.lr_interval", "step"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--data", "FashionMNISTDataModule"], "no Fashion-MNIST file .* in 'data': set data.root"),
        (["--data", "CIFAR100DataModule"], "CIFAR100 is not in 'data/cifar-100-python'"),
        (
            ["--data", "ImageNetDataModule"],
            "'data/imagenet/train' can't be read .*: set data.root to the folder above it",
        ),
        (["--data.val_split", "1.5"], "val_split=1.5: give a share below 1, or a whole number"),
        (["--data.val_split", "1.0"], "val_split=1.0: give a share below 1, or a whole number"),
        (["--trainer.accumulate_grad_batches", "0"], "modulo by zero; .*accumulate_grad_batches"),
        (["--data.val_split", "3000"], "val_split=3000 of 1257 training images"),
        (["--model.student.num_classes", "7"], "gives 7 classes and the data have 10"),
        (["--model.teacher.num_classes", "7"], "probably another number of classes"),
        (["--model.student.depth", "9"], r"depth must be 6n \+ 2"),
        (["--model.teacher_weights", "nothing.pt"], "no weights at 'nothing.pt'"),
        (["--model.teacher_weights", "null", "--model.teacher.num_classes", "7"], "the teacher gives 7 classes"),
        (["--model.bias.mode", "mix"], "'swap', 'blend', 'onehot', 'revise', 'none', 'drop'"),
        (["--model.distiller.temperature", "0"], "temperature must be positive"),
        (["--model.optimizer.lr=-1"], "refuses its arguments: Invalid learning rate"),
        (["--model.unknown", "1"], "unknown"),
        (["--data.mix", "torchvision.transforms.v2.MixUp", "--data.mix.alpha", "1"], "no single label"),
        (["--model.teacher_input", "pretrained"], "CIFARResNet carries no pretrained_cfg"),
        (["--model.teacher_input.std", "[1]"], "mean .* and std .* need one number per channel"),
        (["--model.teacher_classes", "[1, -2]"], "a class map names"),
        (["--trainer.max_epochs", "-1"], r"set trainer\.max_epochs or trainer\.max_steps"),
        (["--ckpt_path", "nothing.ckpt"], "nothing.ckpt"),
        (["--ckpt_path", "."], "is a folder"),
        (["--data.batch_size", "0"], "a batch holds one image at least"),
        (["--data.color_jitter", "3"], "a share from 0 to 1"),
        (["--data.cutout", "-1"], "a side of 0 pixels or more"),
        (["--model.lr_batch_size", "0"], "lr_batch_size=0"),
        (["--model.student.in_channels", "3"], "channels, but got 1 channels.*build the networks"),
        (ONE_CYCLE, "OneCycleLR: Tried to step .*: give it as many steps as the run has"),
        (
            ["-c", "configs/quickstart.yaml", "-c", "configs/method/mlkd_two_views.yaml"],
            "compares 2 views of the same images, .*: set data.strong_view",
        ),
        (["-c", "nothing.yaml"], "nothing.yaml"),
    ],
)
def test_a_mistake_is_one_line(capsys, args, says):
    assert re.search(says, fails(capsys, "fit", *FAST, *args))


def test_a_checkpoint_of_another_model_is_one_line(capsys, checkpoint):
    line = fails(capsys, "test", "--ckpt_path", checkpoint, "--model.student.depth", "14")
    assert "the checkpoint does not fit CIFARResNet: probably a variant of it, as 49 of its 79 tensors fit" in line


def raised_in(file, message="a bug", kind="RuntimeError"):
    """A method that raises an error as if it stood in a file."""
    space = {}
    exec(compile(f"def losses(*_):\n    raise {kind}({message!r})", file, "exec"), space)
    return space["losses"]


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    ours = str(Path(lightning_biaskd.__file__).parent / "training" / "step.py")
    monkeypatch.setattr(DistillationModule, "losses", raised_in(ours))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["fit", *FAST])


def test_an_error_of_foreign_code_is_one_line_with_its_place(monkeypatch, capsys):
    monkeypatch.setattr(DistillationModule, "losses", raised_in("/elsewhere/net.py"))
    line = fails(capsys, "fit", *FAST)
    assert "RuntimeError: a bug (raised in /elsewhere/net.py:2" in line
    monkeypatch.setenv("BIASKD_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="a bug"):
        main(["fit", *FAST])


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ValueError("Expected more than 1 value per channel when training"), "--data.drop_last true"),
        (AssertionError("Wrong image height! Expected 224 but got 32!"), "--data.image_size"),
        (RuntimeError("Expected to have finished reduction in the prior iteration"), "ddp_find_unused_parameters_true"),
        (torch.OutOfMemoryError("CUDA out of memory."), "lower --data.batch_size"),
        (AttributeError("'X' object has no attribute 'backbone'"), "BackboneFinetuning needs"),
        (OSError(28, "No space left on device"), "No space left"),
        (NotADirectoryError(20, "Not a directory", "runs"), "a folder that it can write to"),
    ],
)
def test_a_known_complaint_has_its_remedy(error, remedy):
    assert remedy in explained(error)


def test_an_error_of_a_worker_is_its_last_line():
    try:
        raise ValueError("no such image")
    except ValueError:
        text = f"Caught ValueError in DataLoader worker process 0.\nOriginal {traceback.format_exc()}"
    line = explained(ValueError(text))
    assert line.startswith("ValueError: no such image (raised in ")
    assert "Traceback" not in line.partition("(")[0]


@pytest.mark.parametrize("command", ["fit", "audit"])
def test_ctrl_c_is_one_line(command, monkeypatch, capsys):
    stop = raised_in("net.py", "", "KeyboardInterrupt")
    monkeypatch.setattr(DistillationModule, "losses", stop)
    monkeypatch.setattr("lightning_biaskd.command_line.commands.audit", stop)
    with pytest.raises(SystemExit) as end:
        main([command, *(FAST if command == "fit" else [])])
    assert end.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "biaskd: error: stopped by Ctrl-C"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"trainer: {max_epochs: \xff}", "not UTF-8"),
        (b"trainer:\n\tmax_epochs: 3", "a tab: indent with spaces"),
        (b"trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}", "sets 'trainer' twice, in lines 1 and 2"),
        (b"- 1", "must be keys and values"),
    ],
)
def test_a_damaged_configuration_is_one_line(content, says, capsys):
    Path("own.yaml").write_bytes(content)
    assert says in fails(capsys, "fit", "-c", "own.yaml")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-c", "."], "a folder is given"),
        (["-c", "configs/method/dkdd.yaml"], "did you mean configs/method/dkd.yaml"),
        (["--model.distiller", "DKDD"], "did you mean DKD?"),
        (["--model.student", "lightning_biaskd.models.resnet88"], "did you mean lightning_biaskd.models.resnet8?"),
        (["--data", "DigitsDatModule"], "did you mean DigitsDataModule?"),
        (["--model.distiller.temprature", "3"], "did you mean temperature?"),
        (["--trainer.max_epohcs", "3"], "did you mean max_epochs?"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(args, says, capsys):
    assert says in fails(capsys, "fit", *args)


def test_a_path_in_the_home_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    Path("home/own.yaml").write_text("data: {class_path: FashionMNISTDataModule, init_args: {root: ~/images}}")
    flags = ["-c", "configs/quickstart.yaml", "-c", "~/own.yaml", "--model.student_weights=~/net.pt"]
    assert f"no Fashion-MNIST file in '{tmp_path}/home/images'" in re.sub(
        r"file .* in '", "file in '", fails(capsys, "fit", *flags)
    )


def test_names_are_listed(capsys):
    main(["list"])
    text = capsys.readouterr().out
    for name in ("DKD", "lightning_biaskd.models.resnet8", "DigitsDataModule", "EMA", "configs/method/dkd.yaml"):
        assert f"  {name}\n" in text
    assert "did you mean" not in text
    assert "knows no dat" in fails(capsys, "list", "dat")


def test_a_command_line_of_ones_own(capsys):
    class MyCLI(BiasKDCLI):
        def add_arguments_to_parser(self, parser):
            super().add_arguments_to_parser(parser)
            parser.add_argument("--project", default="mine")

    with pytest.raises(SystemExit) as end:
        run(MyCLI, ["fit", "-c", "configs/recipe/teacher_digits.yaml", "--project", "x", "--print_config"])
    assert end.value.code == 0
    assert "project: x" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        run(MyCLI, ["fit", "-c", "nothing.yaml"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("biaskd: error: there is no configuration file")


def test_builders_get_only_what_the_user_gave():
    parser = BriefParser()
    parser.add_subclass_arguments(torch.nn.Module, "net")
    for name in ("resnext50_32x4d", "wide_resnet50_2", "shufflenet_v2_x0_5", "swin_t"):
        words = ["--net", f"torchvision.models.{name}", "--net.num_classes", "3", "--net.weights", "null"]
        with torch.device("meta"):
            parser.instantiate(parser.parse_args(words))


def test_null_is_null_however_deep_it_lies():
    parser = BriefParser()
    parser.add_subclass_arguments(LightningModule, "model")
    student = [
        "--model",
        "DistillationModule",
        "--model.teacher",
        "torchvision.models.resnet34",
        "--model.student",
        "torchvision.models.resnet18",
    ]
    words = [
        *student,
        "--model.bias",
        "BiasStrategy",
        "--model.bias.trust",
        "run",
        "--model.student.weights",
        "DEFAULT",
    ]
    found = parser.parse_args([*words, "--model.bias.trust", "null", "--model.student.weights=null"]).model.init_args
    assert found.bias.init_args.trust is None
    assert found.student.init_args.weights is None


def test_the_rate_follows_the_length_of_the_run():
    main(["fit", *FAST, "--trainer.max_epochs", "4", "--test_after_fit", "false", "--trainer.limit_train_batches", "1"])
    last = torch.load("runs/quickstart/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["T_max"] == 4
    assert last["lr_schedulers"][0]["_last_lr"] == [pytest.approx(0, abs=1e-9)]


def test_the_summary_shows_the_frozen_teacher(capsys):
    main(["fit", *FAST, "--trainer.enable_model_summary", "true", "--test_after_fit", "false"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "FrozenTeacher" in line]
    assert "frozen" in row
    assert "eval" in row


def test_the_command_outside_this_process():
    run = [sys.executable, "-m", "lightning_biaskd"]
    assert subprocess.run([*run, "--version"], capture_output=True, text=True).stdout.startswith("biaskd ")
    failed = subprocess.run([*run, "fit", "-c", "nothing.yaml"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert failed.stderr.count("biaskd: error: ") == 1


@pytest.mark.parametrize("flag", [["-c", "{}"], ["--config", "{}"], ["--config={}"]])
def test_shipped_files_are_found_by_name_from_anywhere(flag, capsys):
    words = [word.format("configs/recipe/teacher_digits.yaml") for word in flag]
    with pytest.raises(SystemExit) as end:
        main(["fit", *words, "--print_config"])
    assert end.value.code == 0
    assert "ClassificationModule" in capsys.readouterr().out


def test_a_date_is_a_seed():
    main(["fit", *FAST, "--data.seed", "20261124", "--seed_everything", "4294967295"])
    saved = yaml.safe_load(Path("runs/quickstart/version_0/config.yaml").read_text())
    assert (saved["data"]["init_args"]["seed"], saved["seed_everything"]) == (20261124, 4294967295)


def test_a_class_in_the_current_folder_is_found(monkeypatch, capsys):
    method = "from lightning_biaskd import Distiller\n\n\nclass Mine(Distiller):\n    pass\n"
    Path("file_of_ones_own.py").write_text(method)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as of an installed command
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model.distiller", "file_of_ones_own.Mine", "--print_config"])
    assert end.value.code == 0
    assert "file_of_ones_own.Mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("model", "DistillationModule"),
        ("model", "ClassificationModule"),
        ("data", "DigitsDataModule"),
        ("data", "FashionMNISTDataModule"),
        ("data", "CIFAR100DataModule"),
        ("data", "ImageNetDataModule"),
    ],
)
def test_help_explains_every_option(capsys, group, name):
    with pytest.raises(SystemExit) as end:
        main(["fit", f"--{group}.help={name}"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "torch.nn.Identity" not in text  # nor every module that there is
    options = re.split(r"\n  (?=--)", text.split("\n\n", 2)[-1])[1:]
    explained = [option for option in options if ".help" not in option.split()[0]]
    assert len(explained) >= 6
    for option in explained:
        assert re.match(rf"--{group}\.\w+ .*?\s{{2,}}[^(\s]", option, flags=re.DOTALL), option


@pytest.mark.parametrize("path", ["model.bias.help=BiasStrategy", "model.distiller.help=DKD"])
def test_help_explains_nested_options(capsys, path):
    with pytest.raises(SystemExit):
        main(["fit", "--model", "DistillationModule", f"--{path}"])
    assert "default" in capsys.readouterr().out


def test_tf32_is_asked_for_by_name():
    assert torch.get_float32_matmul_precision() == "highest"
    try:
        main(["fit", *FAST, "--float32_matmul_precision", "high", "--test_after_fit", "false"])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_a_few_batches_are_overfitted():
    main(["fit", *FAST[:2], *FAST[6:10], "--trainer.overfit_batches", "2", "--test_after_fit", "false"])
    last = torch.load("runs/quickstart/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
