"""Which row a comparison chooses, and what it says of its lead."""

import math

import pytest
import yaml
from scipy.stats import ttest_rel

from lightning_biaskd.compare import Block, Matrix, Outcome, write_report
from lightning_biaskd.compare.chosen import write_chosen
from lightning_biaskd.compare.scheduler import runs_of
from lightning_biaskd.compare.verdict import verdicts

FORMS = {"alone": None, "plain": None, "ours": None, "paper": None}
BASELINES = {"alone": {"form": "alone"}, "plain": {"form": "plain"}}
ENDS = {
    "alone": ([0.80, 0.82, 0.81], [0.80, 0.80, 0.79]),
    "plain": ([0.84, 0.83, 0.85], [0.83, 0.84, 0.83]),
    "ours": ([0.86, 0.84, 0.85], [0.845, 0.835, 0.835]),
    "paper": ([0.60, 0.62, 0.61], [0.99, 0.99, 0.99]),
}
"""By form: validation accuracy after the last epoch, and on test images, for seeds 0, 1, 2."""


def matrix(**kwargs):
    return Matrix({"form": FORMS}, **{"baselines": BASELINES, "reference": {"form": "plain"}, **kwargs})


def outcome(matrix, ends=ENDS, failed=()):
    def result(run):
        validation, test = (values[run.seed] for values in ends[run.row.names["form"]])
        curve = {"1": 0.99, "2": validation} if validation is not None else {}
        return {
            **{"names": run.row.names, "seed": run.seed, "fingerprint": "f", "command": run.command, "epochs": 2},
            **{"last": {"acc1": test}, "validation": curve, "teacher_validation": None, "wrong_rate": None},
            **{"seconds": 1.0, "resumed": False, "device": "CPU", "versions": {}},
        }

    return Outcome({run: result(run) for run in runs_of(matrix) if run.label not in failed}, {})


def only(found):
    (verdict,) = found
    return verdict


def test_the_last_epoch_on_validation_images_decides_and_test_images_do_not():
    verdict = only(verdicts(matrix(), outcome(matrix()).results))
    assert verdict.run.label == "ours, seed 0"
    assert "ours, with 85.00 % after the last epoch (mean over the seeds 0, 1, 2)" in verdict.text
    assert "on test images 83.83 ± 0.58 %" in verdict.text
    for name in ("alone", "plain"):
        ours, other = (ENDS[form][1] for form in ("ours", name))
        low, high = (100 * end for end in ttest_rel(ours, other).confidence_interval(0.95))
        mean = 100 * (sum(ours) - sum(other)) / 3
        clear = "distinguishable" if low > 0 or high < 0 else "not distinguishable"
        said = f"to {name} {mean:+.2f} [{low:+.2f}, {high:+.2f}] points (95 %), {clear}".replace("-", "−")
        assert said in verdict.text
    assert "points (95 %), distinguishable" in verdict.text
    assert "points (95 %), not distinguishable" in verdict.text


def test_one_seed_cannot_tell_rows_apart():
    small = matrix(seeds=[1])
    verdict = only(verdicts(small, outcome(small).results))
    assert "(seed 1 alone)" in verdict.text
    assert "to alone +3.50 points, but one seed can't tell them apart: add seeds" in verdict.text
    assert "±" not in verdict.text
    assert " distinguishable" not in verdict.text


def test_of_level_rows_the_first_is_chosen_and_the_others_are_named():
    level = {**ENDS, "ours": ENDS["plain"]}
    verdict = only(verdicts(matrix(), outcome(matrix(), level).results))
    assert verdict.run.row.label == "plain"
    assert "Level with it, but later in the matrix: ours." in verdict.text
    assert "It is plain itself." in verdict.text
    assert "to plain" not in verdict.text
    assert "to alone" in verdict.text


def test_rows_are_compared_over_the_seeds_that_all_have():
    rows = [Block(), Block({"form": "ours"}, seeds=[0, 1, 2, 3, 4])]
    more = matrix(rows=rows)
    ends = {**ENDS, "ours": ([0.70, 0.70, 0.70, 0.99, 0.99], [0.7] * 5)}
    found = outcome(more, ends, failed=("alone, seed 2",)).results
    verdict = only(verdicts(more, found))
    assert verdict.run.row.label == "plain"
    assert "so far: plain, with 83.50 % after the last epoch (mean over the seeds 0, 1)" in verdict.text


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_row_without_validation_accuracy_is_not_chosen(missing):
    ends = {**ENDS, "ours": ([missing] * 3, ENDS["ours"][1])}
    assert only(verdicts(matrix(), outcome(matrix(), ends).results)).run.row.label == "plain"
    nowhere = {form: ([missing] * 3, test) for form, (_, test) in ENDS.items()}
    verdict = only(verdicts(matrix(), outcome(matrix(), nowhere).results))
    assert verdict.run is None
    assert verdict.text == "No row is chosen, as no run has a validation accuracy."


def test_a_baseline_without_a_common_seed_is_said_to_be_unknown():
    missing = [f"alone, seed {seed}" for seed in range(3)]
    verdict = only(verdicts(matrix(), outcome(matrix(), failed=missing).results))
    assert "to alone unknown, as they have no seed in common yet" in verdict.text
    assert verdicts(matrix(), {}) == []


def test_rows_of_other_settings_are_not_compared():
    two = Matrix({"data": {"all": None, "few": None}, "form": FORMS}, baselines=BASELINES)
    found = outcome(two).results
    for run, result in found.items():
        if run.row.label == "few, plain":
            result["validation"] = {"2": 0.95}
    few = {verdict.setting["data"]: verdict for verdict in verdicts(two, found)}
    assert few["all"].run.row.label == "all, ours"
    assert few["few"].run.row.label == "few, plain"
    assert few["few"].text.startswith("few: Best on validation images: plain, with 95.00 %")


def test_without_baselines_it_is_the_reference_row():
    for reference, said in (({"form": "plain"}, "to the reference row +0.50 ["), ({}, "ours, with 85.00 %")):
        bare = matrix(baselines={}, reference=reference)
        verdict = only(verdicts(bare, outcome(bare).results))
        assert said in verdict.text
        assert ("Differences" in verdict.text) == bool(reference)


def test_the_report_ends_with_the_verdict(tmp_path):
    found = outcome(matrix())
    write_report(matrix(), found, tmp_path)
    (said,) = found.verdict
    assert (tmp_path / "report.md").read_text().rstrip().endswith(f"## Verdict\n\n{said}")
    assert f"<h2>Verdict</h2><p>{said}</p>" in (tmp_path / "report.html").read_text()
    found.matrix = matrix()
    assert f"<p>{said}</p>" in found._repr_html_()
    assert not (tmp_path / "chosen.yaml").exists()  # as no run has saved a configuration


def saved(run, output, **trainer):
    folder = run.folder(output, "f")
    folder.mkdir(parents=True)
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "old", "monitor": "val/acc1"}}]
    content = {
        "seed_everything": run.seed,
        "trainer": {"callbacks": callbacks, "enable_progress_bar": False, "default_root_dir": "old", **trainer},
        "model": {"class_path": "DistillationModule"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


LOGGER = {"class_path": "CSVLogger", "init_args": {"save_dir": "old", "name": "pair"}}


@pytest.mark.parametrize("logger", [LOGGER, [LOGGER, {"class_path": "CSVLogger", "init_args": None}], None, False])
def test_the_chosen_configuration_is_the_first_runs_and_writes_elsewhere(logger, tmp_path):
    found = outcome(matrix()).results
    verdict = only(verdicts(matrix(), found))
    saved(verdict.run, tmp_path, logger=logger)
    path = write_chosen(verdict, found, tmp_path)
    assert path == tmp_path / "chosen.yaml"
    text = path.read_text()
    assert text.startswith(f"# {verdict.text}\nseed_everything: 0\n")
    assert "old" not in text
    content = yaml.safe_load(text)
    assert content["trainer"]["default_root_dir"] == str(tmp_path / "chosen")
    assert content["trainer"]["callbacks"][0]["init_args"] == {"dirpath": None, "monitor": "val/acc1"}
    assert content["model"] == {"class_path": "DistillationModule"}


def test_a_choice_that_is_no_longer_there_takes_its_file_along(tmp_path):
    found = outcome(matrix()).results
    verdict = only(verdicts(matrix(), found))
    saved(verdict.run, tmp_path)
    path = write_chosen(verdict, found, tmp_path)
    (verdict.run.folder(tmp_path, "f") / "config.yaml").write_text("[half")
    assert write_chosen(verdict, found, tmp_path) is None
    assert not path.exists()


def test_each_setting_has_a_file(tmp_path):
    two = Matrix({"data": {"all": None, "a/b": None}, "form": FORMS}, baselines=BASELINES)
    found = outcome(two)
    for verdict in verdicts(two, found.results):
        saved(verdict.run, tmp_path)
    write_report(two, found, tmp_path)
    assert {path.name for path in tmp_path.glob("*.yaml")} == {"chosen,data=all.yaml", "chosen,data=a-b.yaml"}
    assert found.verdict[1].endswith(f"biaskd fit -c {tmp_path}/chosen,data=a-b.yaml")
