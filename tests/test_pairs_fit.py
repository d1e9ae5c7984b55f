"""Feature methods between networks of other families and libraries, by YAML alone."""

import csv
import math
from pathlib import Path

import pytest
import torch
from data_files import write_cifar, write_folders
from processes import launch

from lightning_biaskd import DistillationModule
from lightning_biaskd.__main__ import main
from lightning_biaskd.data import CIFAR100DataModule

CIFAR = ["-c", "configs/data/cifar100.yaml", "--data.val_split", "8", "--data.batch_size", "4"]
FOLDERS = ["-c", "configs/data/imagenet.yaml", "--data.root", "folders", "--data.val_split", "3"]
FOLDERS += ["--data.batch_size", "4", "--data.num_workers", "0", "--data.image_size", "64", "--data.resize", "64"]
MOBILE = ["-c", "mobile.yaml", *FOLDERS]
TRANSFORMER = ["-c", "transformer.yaml", *FOLDERS]
TOKENS = ["--model.distiller.teacher_layers", "[blocks.3, blocks.7, -1]"]
FILES = {
    "mobile": """
model:
  class_path: DistillationModule
  init_args:
    student: {class_path: torchvision.models.mobilenet_v3_small, dict_kwargs: {num_classes: 3}}
    teacher: {class_path: torchvision.models.resnet50, init_args: {weights: null}, dict_kwargs: {num_classes: 3}}
""",
    "transformer": """
model:
  class_path: DistillationModule
  init_args:
    student: {class_path: torchvision.models.resnet18, dict_kwargs: {num_classes: 3}}
    teacher:
      class_path: timm.create_model
      init_args: {model_name: deit_tiny_patch16_224, pretrained: false}
      dict_kwargs: {num_classes: 3, img_size: 64}
""",
    "review_of_tokens": """
model:
  class_path: DistillationModule
  init_args:
    distiller:
      class_path: WeightedSum
      init_args:
        parts:
          - [{class_path: ReviewKD, init_args: {layers: [-3, -2, -1], teacher_layers: [blocks.3, blocks.7, -1]}}, 1.0]
          - [{class_path: KD}, 1.0]
""",
    "everything": """
model:
  class_path: DistillationModule
  init_args:
    distiller:
      class_path: WeightedSum
      init_args:
        parts:
          - [{class_path: KD}, 1.0]
          - [{class_path: CRD, init_args: {dim: 8, negatives: 64}}, 0.8]
          - [{class_path: OFD}, 0.001]
          - [{class_path: CATKD}, 1.0]
          - [{class_path: ReviewKD}, 1.0]
          - [{class_path: SimKD}, 1.0]
          - [{class_path: SRD}, 1.0]
          - [{class_path: WKDFeature}, 0.1]
""",
}


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(Path("data"), monkeypatch, CIFAR100DataModule)
    write_folders(Path("folders"))
    for name, content in FILES.items():
        Path(f"{name}.yaml").write_text(content)


def fit(pair, method, *arguments):
    options = ["accelerator=cpu", "max_epochs=1", "limit_train_batches=2", "limit_val_batches=1"]
    options += ["enable_progress_bar=false", "log_every_n_steps=1"]
    if "." not in method:
        method = f"configs/method/{method}.yaml"
    files = [f"configs/pair/{pair}.yaml", method, "configs/bias/none.yaml"]  # such a teacher gets hardly an image right
    words = [word for name in files for word in ("-c", name)]
    main(["fit", *words, *arguments, *(f"--trainer.{option}" for option in options)])
    run = Path("runs", pair, "version_0")
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    (loss,) = [float(row["train/loss_kd"]) for row in rows if row.get("train/loss_kd")]
    assert math.isfinite(loss)
    assert loss != 0
    return run / "checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("pair", "method", "arguments"),
    [
        ("cifar100_resnet32x4_resnet8x4", "ofd", CIFAR),
        ("cifar100_wrn_40_2_shufflenet_v1", "wkd_feature", [*CIFAR, "--model.distiller.grid", "4"]),
        ("imagenet_resnet50_mobilenet_v3_small", "review_kd_kd", MOBILE),
        ("imagenet_deit_small_resnet18", "review_of_tokens.yaml", TRANSFORMER),
        ("imagenet_deit_small_resnet18", "ofd", [*TRANSFORMER, *TOKENS]),
    ],
)
def test_fit(pair, method, arguments):
    teacher = ["--model.teacher_weights", "null"] if pair.startswith("cifar") else []
    path = fit(pair, method, *arguments, *teacher)
    learned = torch.load(path, weights_only=True)["state_dict"]
    assert any(name.startswith("distiller.") for name in learned)


def test_a_student_with_two_heads():
    small = [f"--model.student.dict_kwargs.{name}" for name in ("embed_dim=12", "depth=1")]
    teacher = ["--model.teacher_weights", "null"]
    path = fit("cifar100_resnet32x4_deit_tiny_distilled", "deit_soft", *CIFAR, *teacher, *small)
    module = DistillationModule.load_from_checkpoint(path).eval()
    image = torch.randn(2, 3, *module.student.patch_embed.img_size)
    by_class, by_token = module.student.forward_features(image)[:, :2].unbind(1)
    mean = (module.student.head(by_class) + module.student.head_dist(by_token)) / 2
    torch.testing.assert_close(module(image), mean)
    torch.testing.assert_close(module.deployed()(image), mean)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_simkd_is_evaluated_and_loaded_with_the_teachers_classifier(capsys):
    teacher = ["--model.teacher_weights", "null"]
    path = fit("cifar100_wrn_40_2_shufflenet_v1", "simkd", *CIFAR, *teacher)
    main(["test", "--ckpt_path", str(path), "--trainer.limit_test_batches", "1", "--trainer.accelerator", "cpu"])
    assert "top-1 accuracy" in capsys.readouterr().out
    module = DistillationModule.load_from_checkpoint(path).eval()
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(module.deployed()(image), module(image))


def test_on_two_processes_no_parameter_is_without_gradient():
    """DDP fails where one is."""
    arguments = ["-c", "configs/quickstart.yaml", "-c", "everything.yaml", "--test_after_fit", "false"]
    options = ["accelerator=cpu", "devices=2", "strategy=ddp", "max_epochs=1", "limit_train_batches=3"]
    options += ["limit_val_batches=1", "enable_progress_bar=false"]
    launch(main, ["fit", *arguments, *(f"--trainer.{option}" for option in options)], ranks=2, folder=Path.cwd())
    last = torch.load("runs/quickstart/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert {name.split(".")[2] for name in last["state_dict"] if name.startswith("distiller.parts.")} == set("124567")
