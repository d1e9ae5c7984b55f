"""``biaskd compare`` on digits, in real processes: done, resumed, failed, killed."""

import contextlib
import csv
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from html import escape
from pathlib import Path

import pytest
import yaml
from processes import Started

from lightning_biaskd import UserError
from lightning_biaskd.__main__ import main
from lightning_biaskd.command_line.shipped import CONFIGS, shipped
from lightning_biaskd.compare import folder, scheduler
from lightning_biaskd.compare.worker import resumable

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:.*callbacks used to create")
SHORT = {
    **{"trainer.accelerator": "cpu", "trainer.max_epochs": 2, "trainer.limit_train_batches": 3},
    **{"trainer.limit_val_batches": 1, "trainer.limit_test_batches": 2},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_matrix(**kwargs):
    matrix = {
        "base": ["configs/data/digits.yaml", "configs/pair/digits_resnet8_resnet8quarter.yaml"],
        "flags": SHORT,
        "axes": {"bias": {"none": "configs/bias/none.yaml", "swap": "configs/bias/swap.yaml"}},
        "seeds": [0, 1],
        "reference": {"bias": "none"},
        **kwargs,
    }
    Path("matrix.yaml").write_text(yaml.safe_dump(matrix))


def compare(*arguments):
    """The exit status of the command."""
    with pytest.raises(SystemExit) as end:
        main(["compare", "-c", "matrix.yaml", "--output", "out", "--threads", "1", *arguments])
    return end.value.code


def results():
    found = [json.loads(path.read_text()) for path in sorted(Path("out/runs").rglob("result.json"))]
    return {(*result["names"].values(), result["seed"]): result for result in found}


def test_a_matrix_is_run_reported_and_not_run_again(capsys):
    write_matrix(baselines={"plain": {"bias": "none"}})
    assert compare("--jobs", "2") == 0
    found = results()
    assert set(found) == {("none", 0), ("none", 1), ("swap", 0), ("swap", 1)}
    for result in found.values():
        assert 0 <= result["last"]["acc1"] <= 1
        assert result["best"]["acc1"] >= 0
        assert list(result["validation"]) == ["1", "2"]
        assert result["last"]["teacher_acc1"] > 0.8
        assert (result["epochs"], result["resumed"]) == (2, False)
    rows = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert len(rows) == 4
    page = Path("out/report.html").read_text()
    assert found["swap", 1]["command"] in page
    out = capsys.readouterr().out
    assert "| swap | 2 |" in out
    assert "4 of 4 runs" in out
    verdict = out.rstrip().splitlines()[-1]
    assert verdict.startswith("Best on validation images: ")
    assert verdict.endswith("To train it again: biaskd fit -c out/chosen.yaml")
    assert escape(verdict) in page
    for place in Path("out/runs/bias=none").iterdir():
        assert {"config.yaml", "run.log", "metrics.csv", "checkpoints"} <= {path.name for path in place.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("*")}
    assert compare() == 0
    assert {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("*")} == before
    assert "4 of 4 runs were done before" in capsys.readouterr().out
    # by hand, the command of a run gives the number of the run
    command = shlex.split(rows[3]["command"])
    main([*command[1:], "--test_after_fit=true", "--trainer.enable_progress_bar=false"])
    metrics = next(Path("runs").rglob("metrics.csv")).read_text().splitlines()
    (by_hand,) = [row["test/acc1"] for row in csv.DictReader(metrics) if row.get("test/acc1")]
    assert (rows[3]["bias"], rows[3]["seed"]) == ("swap", "1")
    assert float(by_hand) == float(rows[3]["acc1_last"])
    # the chosen configuration ends as its run did, and writes nothing elsewhere
    main(["fit", "-c", "out/chosen.yaml", "--test_after_fit=true", "--trainer.enable_progress_bar=false"])
    (folder,) = Path("out/chosen").rglob("version_0")
    metrics = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    (accuracy,) = [line["test/acc1"] for line in metrics if line.get("test/acc1")]
    row = re.match(r"Best on validation images: (\w+), with", verdict)[1]
    assert ("It is plain itself." in verdict) == (row == "none")
    assert float(accuracy) == found[row, 0]["last"]["acc1"]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    main(["fit", "-c", "out/chosen.yaml", "--trainer.max_epochs=1"])
    assert (folder.parent / "version_1" / "checkpoints" / "last.ckpt").is_file()
    assert {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("*")} == before
    assert len(list(Path("runs").rglob("version_*"))) == 1  # the run by hand


def test_a_pair_and_its_data_are_put_behind_the_shipped_matrix(capsys):
    Path("mine.yaml").write_text(Path(shipped("configs/pair/digits_resnet8_resnet8quarter.yaml")).read_text())
    Path("mine.yaml").write_text(Path("mine.yaml").read_text().replace("../parts", str(CONFIGS / "parts")))
    flags = json.dumps({**SHORT, "trainer.max_epochs": 1})
    files = ["-c", "configs/matrix/choose.yaml", "-c", "configs/data/digits.yaml", "-c", "mine.yaml"]
    with pytest.raises(SystemExit) as end:
        main(["compare", *files, "--output", "out", "--flags", flags, "--seeds", "[0]", "--threads", "1"])
    assert end.value.code == 0
    assert set(results()) == {(form, 0) for form in ("alone", "plain", "recommended", "paper")}
    verdict = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert "one seed can't tell them apart" in verdict
    content = yaml.safe_load(Path("out/chosen.yaml").read_text())
    assert content["model"]["init_args"]["student"]["init_args"]["widths"] == [4, 4, 8, 16]


def test_another_configuration_is_another_run(capsys):
    write_matrix(seeds=[0], axes={"bias": {"none": "configs/bias/none.yaml"}})
    assert compare() == 0
    assert compare("--dry_run", "true") == 0
    assert "done    none, seed 0\n        biaskd fit -c configs/data/digits.yaml" in capsys.readouterr().out
    write_matrix(seeds=[0], axes={"bias": {"none": "configs/bias/none.yaml"}}, flags={**SHORT, "data.batch_size": 32})
    assert compare("--dry_run", "true") == 0
    assert "missing none, seed 0" in capsys.readouterr().out


def test_a_run_that_fails_is_one_line_and_the_others_go_on(capsys):
    axes = {
        "student": {
            "deep": {"model.student.depth": 9},
            "wide": {"trainer.devices": 2, "trainer.strategy": "ddp"},
            "as it is": None,
        }
    }
    write_matrix(axes=axes, seeds=[0], reference={})
    assert compare("--jobs", "2") == 1
    assert set(results()) == {("as it is", 0)}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 2
    assert "deep, seed 0: depth must be 6n + 2 (8, 14, 20, …), got 9 (see out" in lines[0]
    assert "wide, seed 0: a run of a matrix has one device" in lines[1]
    assert "depth must be 6n + 2" in Path("out/report.html").read_text()
    assert "Traceback" in next(Path("out/runs/student=deep").rglob("run.log")).read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"flags": {"trainer.epochs": 3}}, "none: unrecognized arguments: --trainer.epochs=3"),
        ({"axes": {"bias": {"none": {"model.bias.mode": "mix"}}}}, "none: .*'swap', 'blend'"),
        ({"base": ["nowhere.yaml"]}, "no file 'nowhere.yaml'"),
        ({"reference": {"bias": "plain"}}, "bias has no 'plain'; it has none, swap"),
        ({"seeds": ["a"]}, "seeds"),
        ({"rows": [{"pick": {"bias": "none"}, "seed": [1]}]}, "seed"),
        ({"axis": {"bias": {"none": None}}}, "axis"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_run(change, says, capsys):
    write_matrix(**change)
    assert compare() in (1, 2)
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("biaskd: error: ")]
    assert re.search(says, line)
    assert not Path("out").exists()


def test_the_command_is_told_of(capsys):
    for arguments in (["--help"], ["compare", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
    told = capsys.readouterr().out
    assert "biaskd compare -c MATRIX.yaml" in told
    for option in ("--axes", "--seeds", "--rows", "--reference", "--jobs", "--output", "--dry_run"):
        assert option in told


@pytest.mark.parametrize("option", ["--jobs", "--threads"])
def test_nonsensical_numbers_are_one_line(option, capsys):
    write_matrix()
    assert compare(option, "0") == 1
    assert "jobs and threads are numbers from 1" in capsys.readouterr().err


def test_without_a_matrix_it_says_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        main(["compare"])
    assert "arguments are required: axes" in capsys.readouterr().err


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("whom", ["the whole tree", "the parent alone"])
def test_a_killed_matrix_goes_on(whom):
    epochs = 15
    write_matrix(seeds=[0], flags={**SHORT, "trainer.max_epochs": epochs})
    first = Path("out/runs/bias=none")
    if whom == "the whole tree":  # with the server of its own that forks its runs
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "lightning_biaskd", "compare", "-c", "matrix.yaml", "--output", "out"]
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda: list(first.rglob("last.ckpt")))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    else:
        parent = start()
        wait_for(lambda: list(first.rglob("last.ckpt")))
        parent.kill()
    assert not results()
    assert compare() == 0  # waits for an orphan to end, which it does by itself
    found = results()
    assert found["none", 0]["resumed"]
    assert not found["swap", 0]["resumed"]
    for result in found.values():
        assert [int(epoch) for epoch in result["validation"]] == list(range(1, epochs + 1))
        assert result["epochs"] == epochs
    assert len(list(first.iterdir())) == 1
    resumed, whole = (logged(f"bias={name}") for name in ("none", "swap"))
    lost = [row for row in whole if row not in resumed]
    assert [row for row in whole if row not in lost] == resumed
    assert len(lost) <= 1  # the training row of an epoch that is killed after its checkpoint and before its end
    assert not any(validated for *_, (_, _, validated) in lost)


def logged(row):
    """Epoch and step of what was logged in training and in validation, from a row's only metrics.csv.

    Tests are left out: there is one more where the last epoch isn't the best.
    """
    (path,) = Path("out/runs", row).rglob("metrics.csv")
    lines = list(csv.DictReader(path.read_text().splitlines()))
    kinds = "train/loss", "train/loss_step", "val/acc1"
    return [
        (line["epoch"], line["step"], [bool(line.get(kind)) for kind in kinds])
        for line in lines
        if not line["test/acc1"]
    ]


def test_a_file_that_is_edited_during_a_run_is_for_the_next(monkeypatch):
    def edit(workers):
        with Path("mine.yaml").open("a") as file:
            file.write("# edited\n")
        return ready(workers)

    ready = scheduler._ready
    monkeypatch.setattr(scheduler, "_ready", edit)
    Path("mine.yaml").write_text(Path(shipped("configs/bias/none.yaml")).read_text())
    write_matrix(seeds=[0], axes={"bias": {"mine": "mine.yaml"}}, reference={})
    assert compare() == 0
    assert set(results()) == {("mine", 0)}


def test_a_damaged_checkpoint_starts_the_run_anew(capsys, tmp_path):
    path = tmp_path / "last.ckpt"
    assert resumable(path) is None
    path.write_bytes(b"PK\x03\x04 half of it")
    assert resumable(path) is None
    assert "is damaged" in capsys.readouterr().err


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    folder.write_result(tmp_path, {"a": 1})
    with pytest.raises(TypeError):
        folder.write_result(tmp_path, {"a": object()})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}


def start():
    """A process that compares; its runs end by themselves if it is killed."""
    return Started(main, ["compare", "-c", "matrix.yaml", "--output", "out"], folder=Path.cwd())


def test_a_list_has_a_command_for_each_missing_run(capsys):
    write_matrix(seeds=[0])
    assert compare("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    words = shlex.split(lines[1])
    assert words[:2] == ["biaskd", "compare"]
    with pytest.raises(SystemExit) as end:
        main(words[1:])
    assert end.value.code == 0
    assert set(results()) == {("swap", 0)}
    assert not Path("out/report.html").exists()
    capsys.readouterr()
    assert compare("--list") == 0
    assert capsys.readouterr().out.splitlines() == lines[:1]
    assert compare("--report") == 0
    assert "1 of 2 runs" in capsys.readouterr().out
    assert len(list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))) == 1
    assert compare("--run", "bias=swap/seed0-0000000000") == 1
    assert "the matrix has no run 'bias=swap/seed0-0000000000'" in capsys.readouterr().err


def take(lines):
    """Runs commands of ``--list`` one after the other, as a node of a scheduler does."""
    for line in lines:
        with contextlib.suppress(SystemExit):
            main(shlex.split(line)[1:])


def test_two_schedulers_share_a_folder_and_one_of_them_is_killed(capsys):
    epochs = 15
    write_matrix(seeds=[0], flags={**SHORT, "trainer.max_epochs": epochs})
    assert compare("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    one = Started(take, lines, folder=Path.cwd())
    other = Started(take, lines[::-1], folder=Path.cwd())
    wait_for(lambda: list(Path("out/runs/bias=none").rglob("last.ckpt")), 200)
    one.kill()
    assert ("none", 0) not in results()
    assert compare("--report") == 0  # of whatever is there
    assert len(list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))) < 2
    other.finished()
    found = results()
    assert set(found) == {("none", 0), ("swap", 0)}
    assert [list(map(int, result["validation"])) for result in found.values()] == [list(range(1, epochs + 1))] * 2
    # each epoch once; the training row of an epoch is lost by a kill between its checkpoint and its end
    killed, whole = ([line for line in logged(f"bias={name}") if line[2][2]] for name in ("none", "swap"))
    assert killed == whole
    capsys.readouterr()
    assert compare("--list") == 0
    assert not capsys.readouterr().out
    assert compare("--report") == 0
    out = capsys.readouterr().out
    assert out.startswith("2 of 2 runs are in")
    assert out.splitlines()[-1].startswith("Best on validation images: ")


@pytest.mark.parametrize(
    "damage", [b'{"last": {"acc1"', b"\xff\xfe", b"[]", b"{}", b'{"last": {"acc1": "high"}}', b"[" * 10**5]
)
def test_a_damaged_result_is_one_line_and_counts_as_none(damage, tmp_path, capsys):
    (tmp_path / "result.json").write_bytes(damage)
    assert folder.result_in(tmp_path) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged" in line
    assert "the run is repeated" in line


def test_a_run_with_a_damaged_result_is_repeated(capsys):
    write_matrix(seeds=[0], axes={"bias": {"none": "configs/bias/none.yaml"}})
    assert compare() == 0
    (path,) = Path("out").rglob("result.json")
    before = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    assert compare() == 0
    assert "is damaged" in capsys.readouterr().err
    after = json.loads(path.read_text())
    assert (after["last"], after["best"], after["validation"]) == (before["last"], before["best"], before["validation"])


def test_a_taken_folder_is_left_alone(tmp_path):
    assert not folder.is_taken(tmp_path)
    with folder.alone_in(tmp_path):
        assert folder.is_taken(tmp_path)
        with pytest.raises(folder.BusyError), folder.alone_in(tmp_path):
            pass
    assert not folder.is_taken(tmp_path)


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(folder.fcntl, "flock", flock)
    match = r"can't be locked \(Function not implemented\).*choose an --output on"
    with pytest.raises(UserError, match=match), folder.alone_in(tmp_path):
        pass
