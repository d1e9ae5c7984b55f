"""What Lightning offers, from the command line."""

import shutil
import subprocess

import pytest
import yaml

from lightning_biaskd.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:.*callbacks used to create")
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
FAST = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1", *QUIET]
FAST += ["--trainer.log_every_n_steps", "1", "--test_after_fit", "false"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def again(capsys):
    """The configuration of the first run, as its own file gives it."""
    with pytest.raises(SystemExit):
        main(["fit", "-c", "runs/quickstart/version_0/config.yaml", "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"][-1]["init_args"]


@pytest.mark.filterwarnings("ignore:.*does not appear in the parameters", "ignore:.*swa")
def test_what_yaml_cannot_hold_is_written_as_it_was_given(capsys):
    swa = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"]
    main(["fit", *FAST, *swa, "--trainer.max_epochs", "2"])
    assert again(capsys)["device"] == "cpu"


def test_a_pruned_student_is_tested_by_its_own_configuration(capsys):
    pruning = ["--trainer.callbacks+=ModelPruning", "--trainer.callbacks.pruning_fn", "l1_unstructured"]
    pruning += ["--trainer.callbacks.amount", "0.3", "--model.channels_last", "false"]
    main(["fit", *FAST, *pruning])
    assert again(capsys)["pruning_fn"] == "l1_unstructured"
    main(["test", "--ckpt_path", "runs/quickstart/version_0/checkpoints/last.ckpt", *QUIET])
    assert "On the test images" in capsys.readouterr().out


def test_a_timer_without_arguments(capsys):
    plain = ["--model.bias", "null", "--trainer.callbacks+=Timer"]
    main(["fit", *FAST, *plain])
    assert again(capsys)["interval"] == "step"


PLATEAU = [
    "--model.lr_scheduler",
    "lightning.pytorch.cli.ReduceLROnPlateau",
    "--model.lr_scheduler.monitor",
    "val/acc1",
]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*PLATEAU, "--model.lr_interval", "step"], "set lr_interval to epoch"),
        (
            ["--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"],
            "use lightning.pytorch.cli.ReduceLROnPlateau and set its monitor",
        ),
    ],
)
def test_a_plateau_of_nothing_is_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit):
        main(["fit", *FAST, *arguments])
    assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_shell_completes_every_word(capsys):
    main(["words"])
    words = capsys.readouterr().out
    begun = {"fi": "fit", "comp": "compare", "--trainer.max_ep": "--trainer.max_epochs", "DK": "DKD", "EM": "EMA"}
    begun |= {"--model.kd_": "--model.kd_weight", "--data.val_": "--data.val_split"}
    begun |= {"configs/q": "configs/quickstart.yaml"}
    script = "\n".join(f'compgen -W "$WORDS" -- {word}' for word in begun)
    run = subprocess.run(["bash", "-c", script], env={"WORDS": words}, capture_output=True, text=True)
    assert set(begun.values()) <= set(run.stdout.split())
