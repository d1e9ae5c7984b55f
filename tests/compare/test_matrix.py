"""Which rows a matrix has, and what command each run is."""

import shlex
from dataclasses import replace

import pytest

from lightning_biaskd import UserError
from lightning_biaskd.command_line.shipped import CONFIGS, shipped
from lightning_biaskd.compare import Block, Matrix
from lightning_biaskd.compare.command import parsed
from lightning_biaskd.compare.scheduler import run_matrix, runs_of
from lightning_biaskd.compare.worker import check

AXES = {
    "method": {"kd": "configs/method/kd.yaml", "dkd": {"config": "configs/method/dkd.yaml", "model.kd_weight": 2}},
    "bias": {"none": ["configs/bias/none.yaml"], "swap": "configs/bias/swap.yaml", "off": {"model.bias": None}},
    "data": {"all": None, "small": {"data.train_size": 50}},
}


def matrix(*rows, **kwargs):
    return Matrix(axes=AXES, base=["configs/data/digits.yaml"], rows=list(rows) or [Block()], **kwargs)


def labels(*rows, **kwargs):
    return [row.label for row in matrix(*rows, **kwargs).expanded()]


def row_of(label, *rows, **kwargs):
    (found,) = [row for row in matrix(*rows, **kwargs).expanded() if row.label == label]
    return found


def test_without_blocks_it_is_the_whole_product():
    assert len(labels()) == 12
    assert labels()[:3] == ["kd, none, all", "kd, none, small", "kd, swap, all"]


def test_blocks_are_products_that_add_up():
    picked = labels(
        Block({"method": "kd", "bias": ["none", "swap"], "data": "all"}), Block({"bias": "off", "data": "small"})
    )
    assert picked == ["kd, none, all", "kd, swap, all", "kd, off, small", "dkd, off, small"]


def test_a_later_block_changes_rows_that_are_there():
    blocks = (
        Block({"data": "all"}),
        Block({"method": "dkd", "bias": "swap", "data": "all"}, flags={"model.ce_weight": 3}),
    )
    assert len(labels(*blocks)) == 6
    assert row_of("dkd, swap, all", *blocks).flags == {"model.kd_weight": 2, "model.ce_weight": 3}
    assert row_of("dkd, none, all", *blocks).flags == {"model.kd_weight": 2}
    other = row_of("kd, none, all", Block({"data": "all"}, flags={"config": "a.yaml"}))
    assert other.files == ("configs/data/digits.yaml", "configs/method/kd.yaml", "configs/bias/none.yaml", "a.yaml")


def test_rows_have_seeds_of_their_own():
    blocks = (
        Block(),
        Block({"method": "kd", "data": "all"}, seeds=[0, 1, 2, 3, 4]),
        Block({"bias": "swap"}, flags={"x": 1}),
    )
    seeds = {row.label: row.seeds for row in matrix(*blocks, seeds=[0, 1]).expanded()}
    assert seeds["kd, swap, all"] == (0, 1, 2, 3, 4)  # the last block has no say in it
    assert seeds["dkd, swap, all"] == seeds["kd, swap, small"] == (0, 1)
    runs = runs_of(matrix(*blocks, seeds=[0, 1]))
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len(runs) == len(set(runs)) == 9 * 2 + 3 * 5


def test_rows_can_be_left_out():
    assert len(labels(Block(), Block({"method": "dkd", "bias": "off"}, skip=True))) == 10


def test_a_run_is_files_then_flags_in_their_order_then_its_seed():
    row = row_of("dkd, off, small", flags={"trainer.max_epochs": 3, "model.kd_weight": 1, "data.augment": False})
    (run, *_) = row.runs()
    assert run.words() == [
        *("-c", "configs/data/digits.yaml", "-c", "configs/method/dkd.yaml"),
        *("--trainer.max_epochs=3", "--model.kd_weight=2", "--data.augment=false", "--model.bias=null"),
        *("--data.train_size=50", "--seed_everything=0"),
    ]
    assert shlex.split(run.command) == ["biaskd", "fit", *run.words()]


def test_the_reference_is_the_same_on_all_other_axes():
    own = matrix(reference={"bias": "none"})
    rows = {row.label: row for row in own.expanded()}
    assert own.reference_of(rows["dkd, swap, small"]).label == "dkd, none, small"
    assert own.reference_of(rows["dkd, none, small"]) is None
    one = matrix(reference={"method": "kd", "bias": "none"})
    assert one.reference_of(rows["dkd, none, small"]).label == "kd, none, small"
    assert matrix().reference_of(rows["dkd, swap, all"]) is None
    missing = matrix(Block(), Block({"bias": "none"}, skip=True), reference={"bias": "none"})
    assert missing.reference_of(rows["dkd, swap, all"]) is None


def test_the_lines_of_a_panel_are_the_reference_axis():
    assert matrix(reference={"method": "kd", "bias": "none"}).lines == "bias"
    assert matrix().lines == "data"
    assert matrix(lines="method").lines == "method"


def fingerprint(**kwargs):
    return next(row_of("kd, none, all", **kwargs).runs()).fingerprint


def test_the_fingerprint_follows_flags_seed_and_the_contents_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = fingerprint()
    assert first == fingerprint()
    others = [fingerprint(flags={"trainer.max_epochs": 3}), fingerprint(seeds=[1])]
    weights, file = tmp_path / "teacher.pt", tmp_path / "pair.yaml"
    weights.write_bytes(b"one")
    file.write_text("model: {init_args: {teacher_weights: teacher.pt}}")
    with_file = replace(matrix(), base=["pair.yaml"])

    def of_file():
        return next(with_file.expanded()[0].runs()).fingerprint

    others += [of_file(), fingerprint(flags={"model.teacher_weights": "teacher.pt"})]
    weights.write_bytes(b"two!")
    others += [of_file(), fingerprint(flags={"model.teacher_weights": "teacher.pt"})]
    file.write_text("model: {init_args: {teacher_weights: teacher.pt, ce_weight: 1}}")
    others += [of_file()]
    assert len({first, *others}) == 1 + len(others)


def test_folders_are_safe_and_different():
    rows = Matrix({"a b": {"x/y": None, "10 %": None, "ß": None}}).expanded()
    assert [row.folder for row in rows] == ["a-b=x-y", "a-b=10-%", "a-b=ß"]
    with pytest.raises(UserError, match="two names differ in nothing but signs"):
        Matrix({"a": {"x/y": None, "x y": None}})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": [Block({"metod": "kd"})]}, r"rows\[0\].pick: there is no axis 'metod'; there are method, bias, data"),
        (
            {"rows": [Block(), Block({"bias": ["swap", "swop"]})]},
            r"rows\[1\].pick: bias has no 'swop'; it has none, swap",
        ),
        ({"reference": {"bias": "plain"}}, "reference: bias has no 'plain'"),
        ({"lines": "seed"}, "lines: there is no axis 'seed'"),
        ({"rows": [Block(skip=True)]}, "all are skipped"),
        ({"seeds": []}, "every row needs at least one"),
        ({"axes": {}}, "give at least one axis"),
        ({"axes": {"method": {}}}, "each at least one name"),
    ],
)
def test_mistakes_are_one_line(change, says):
    with pytest.raises(UserError, match=says) as error:
        replace(matrix(), **{"lines": None, **change})
    assert "\n" not in str(error.value)


def test_a_part_that_a_file_names_belongs_to_the_fingerprint(tmp_path):
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "mine.yaml").write_text("model: {init_args: {optimizer: ../sgd.yaml}}")
    found = set()
    for rate in (0.1, 0.2):
        (tmp_path / "sgd.yaml").write_text(f"{{class_path: torch.optim.SGD, init_args: {{lr: {rate}}}}}")
        found.add(next(Matrix({"a": {"b": str(tmp_path / "pair" / "mine.yaml")}}).expanded()[0].runs()).fingerprint)
    assert len(found) == 2


def test_what_named_files_name_in_their_turn_belongs_to_the_fingerprint(tmp_path, monkeypatch):
    """A teacher's own YAML file, a folder of save_pretrained, shards behind an index, and the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in ("saved", "shards"):
        (tmp_path / folder).mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    (tmp_path / "shards" / "model.safetensors.index.json").write_text('{"weight_map": {"w": "part-1.safetensors"}}')
    (tmp_path / "teacher.yaml").write_text("{class_path: EnsembleTeacher, init_args: {weights: [plain]}}")
    (tmp_path / "pair.yaml").write_text("model: {init_args: {teacher: teacher.yaml}}")
    places = {
        "plain": {"config": "pair.yaml"},
        "saved/model.safetensors": {"model.teacher_weights": "saved"},
        "shards/part-1.safetensors": {"model.teacher_weights": "shards/model.safetensors.index.json"},
        "teacher": {"model.teacher_weights": "~/teacher"},
    }
    for place, choice in places.items():
        found = set()
        for content in (b"one", b"other"):
            (tmp_path / place).write_bytes(content)
            found.add(next(Matrix({"a": {"b": choice}}).expanded()[0].runs()).fingerprint)
        assert len(found) == 2, place


def test_files_that_name_each_other_and_long_texts_have_a_fingerprint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(f"{{note: {'long ' * 200}, user: ~nobody-here/x, other: b.yaml}}")
    (tmp_path / "b.yaml").write_text("{other: a.yaml}")
    assert len(next(Matrix({"a": {"b": "a.yaml"}}).expanded()[0].runs()).fingerprint) == 10


def test_a_missing_file_is_one_line():
    with pytest.raises(UserError, match=r"no file 'nowhere.yaml', which the matrix names"):
        next(Matrix({"a": {"b": "nowhere.yaml"}}).expanded()[0].runs()).fingerprint  # noqa: B018


PAIR = "configs/pair/digits_resnet8_resnet8quarter.yaml"
MATRICES = [*(CONFIGS / "matrix").glob("*.yaml"), *(CONFIGS / "evidence").glob("*.yaml")]
CHECKED = 8


@pytest.mark.parametrize(
    "path", sorted(path for path in MATRICES if "axes:" in path.read_text()), ids=lambda path: path.stem
)
def test_every_shipped_matrix_parses_down_to_its_runs(path):
    files = [] if "base:" in path.read_text() else ["configs/data/digits.yaml", PAIR]
    matrix, _ = parsed(["-c", str(path), *(word for file in files for word in ("-c", shipped(file)))])
    unseen = {(axis, name) for axis, names in matrix.axes.items() for name in names}
    needed = []
    for row in matrix.expanded():
        if unseen & row.names.items():  # each name once, not each combination
            unseen -= row.names.items()
            needed.append(row)
    assert not unseen
    for row in needed[:: -(-len(needed) // CHECKED)]:
        check(next(row.runs()).words())


def test_files_of_data_and_pair_are_added_to_the_base(tmp_path):
    (tmp_path / "mine.yaml").write_text("{base: [first.yaml], axes: {a: {b: null}}}")
    for name in ("data", "model"):
        (tmp_path / f"{name}.yaml").write_text(f"{name}: {{}}")
    mine, data, model = (str(tmp_path / f"{name}.yaml") for name in ("mine", "data", "model"))
    for words in (["-c", mine, "-c", data, f"--config={model}"], ["-c", data, f"-c={mine}", "--config", model]):
        found, _ = parsed([*words, "--seeds", "[4]"])
        assert (found.base, found.seeds) == (["first.yaml", data, model], [4])
        (row,) = found.expanded()
        assert row.files == ("first.yaml", data, model)


def test_a_matrix_without_data_and_pair_says_how_to_name_them(tmp_path):
    with pytest.raises(UserError, match=r"alone: the matrix has no base; list data and pair after it, -c DATA.yaml"):
        run_matrix(parsed(["-c", str(CONFIGS / "matrix" / "choose.yaml")])[0], tmp_path)
